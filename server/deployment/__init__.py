"""The running server: SuperLink and proxy, site registrations, agreement with the sites, runs and their status."""
