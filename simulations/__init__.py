"""Virtual sites in one process, for research, tests and benchmarks."""
