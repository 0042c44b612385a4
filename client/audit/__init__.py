"""Descriptions of the ledger for a data-protection officer, and a new ledger after a loss."""
