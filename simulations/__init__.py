"""Simulations of a federation with virtual sites in one process, for research, tests and benchmarks."""
