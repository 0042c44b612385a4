"""The round loop: message exchange, checks of replies, secure aggregation, records and checkpoints."""
