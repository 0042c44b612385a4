"""`ept-fed audit attack`: recompute and attack the updates of a finished run."""
