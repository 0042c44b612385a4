"""The commands `ept-fed server` and `ept-fed provision`."""
