"""Attacks on what leaves a site: membership inference and update inversion, as pure functions."""
