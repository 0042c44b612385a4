"""Long-running child processes: started, watched, restarted and ended together."""
