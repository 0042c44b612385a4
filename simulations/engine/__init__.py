"""The simulation engine: rounds over LocalGrid, baselines, comparison and resume, all in one process."""
