"""The commands `ept-fed site` and `ept-fed audit`."""
