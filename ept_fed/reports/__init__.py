"""Reports: what a run leaves behind for people and programs to read."""
