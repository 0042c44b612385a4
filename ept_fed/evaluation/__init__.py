"""Evaluation: predictions on a site's own images, and metrics as pure functions over arrays."""
