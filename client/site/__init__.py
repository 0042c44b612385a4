"""One hospital's part in a run: its images, its model, its state, and the update that it computes."""
