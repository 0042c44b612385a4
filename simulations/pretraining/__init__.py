"""Pretraining of the demo backbone on procedural images; run from a checkout, not part of the wheel."""
