"""Data sources: one file per format, from lists and folders to a catalog of records; the registry lists them."""
