"""The plan of a run: everything that a server needs to run a federation without a model."""
