"""`ept-fed audit attack`: a finished run's updates computed again and attacked."""
