"""The plan of a run: all that a server needs to know, without a model."""
