"""Differential privacy: the noise, and the accountant that computes the privacy cost."""
