"""Training at one site: optimiser groups, losses, schedules and the local loop."""
