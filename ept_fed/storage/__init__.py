"""Files that are written atomically: text and JSON, canonical JSON for signatures, checksummed checkpoints."""
