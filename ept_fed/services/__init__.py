"""Long-running child processes: they are started, watched, restarted and ended together."""
