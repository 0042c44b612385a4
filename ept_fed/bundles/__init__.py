"""Release bundles, which are signed folders with one site's model: creation, checks, prediction and deployment."""
