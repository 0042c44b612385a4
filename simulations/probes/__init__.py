"""Experiments on single questions; run from a checkout, not part of the wheel."""
