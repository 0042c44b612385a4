"""The round loop: exchange, admission of replies, secure aggregation, records and checkpoints."""
