"""Secure aggregation (Bonawitz et al. 2017): masks, secret sharing, and both sides as state machines."""
