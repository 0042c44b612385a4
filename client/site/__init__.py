"""One hospital's part in a run: its images, its model, its state, and the computation of its update."""
