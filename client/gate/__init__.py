"""The gate: it applies the site's policy to every message in and out, and keeps the ledger and the privacy budget."""
