"""Measurements of speed, memory and robustness; run from a checkout, not part of the wheel."""
