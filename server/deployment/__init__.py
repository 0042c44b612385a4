"""The running server: SuperLink behind its proxy, registrations, agreement with the sites, runs and their status."""
