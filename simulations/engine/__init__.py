"""Virtual sites in one process: rounds over LocalGrid, baselines, comparison, resume."""
