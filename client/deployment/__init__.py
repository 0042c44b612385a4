"""The code behind `ept-fed site start` and `site check`: worker and SuperNode as services, and preflight checks."""
