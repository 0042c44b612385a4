"""`ept-fed site start` and `site check`: the worker and SuperNode as services, and the preflight checks."""
