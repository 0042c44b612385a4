"""`ept-fed audit attack --strength full`: shadow runs, and the likelihood ratios that they make possible."""
