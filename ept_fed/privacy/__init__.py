"""What privacy costs and what hides in noise: pure functions over numbers and arrays, no torch, no files."""
