"""The commands `ept-fed simulate`, `benchmark`, `doctor rehearse` and `audit attack`."""
