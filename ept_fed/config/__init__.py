"""Typed settings, with one file per section of an experiment, and the YAML reader that validates them together."""
