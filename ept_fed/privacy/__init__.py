"""Attacks on what a site sends, differential privacy, and secure aggregation: arithmetic only, no files, no Flower."""
