"""Files written whole or not at all: text and JSON, canonical JSON for signatures, checksummed checkpoints."""
