"""The commands `ept-fed simulate`, `benchmark`, `report`, `doctor rehearse` and `audit attack`."""
