"""`ept-fed benchmark --analyse`: features before and after tuning, measured and drawn."""
