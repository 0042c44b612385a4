"""The ledger in words for a data-protection officer, and a new ledger after a loss."""
