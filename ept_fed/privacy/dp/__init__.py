"""Differential privacy: the noise, and the accountant that says what it costs."""
