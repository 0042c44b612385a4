"""Release bundles: one site's model as a signed folder, what makes them, and what predicts with them."""
