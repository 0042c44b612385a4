"""Training at one site: optimiser groups, losses, the schedule and the local loop."""
