"""Writing and reading of a run folder: settings, rounds, predictions, comparison."""
