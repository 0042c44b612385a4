"""Evaluation: predictions for a site's own images, and metrics as pure functions of arrays."""
