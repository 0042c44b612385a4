"""A run's numbers in other people's viewers: counts and averages per round, never an image, a file name or a path."""
