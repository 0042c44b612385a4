"""The gate: the site's policy, applied to every message in and out, with the ledger and the privacy budget."""
