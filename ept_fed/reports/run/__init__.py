"""A run folder, written and read: settings, rounds, predictions, comparison."""
