"""Data sources: one file per format, which makes a catalog of records; the registry lists them."""
