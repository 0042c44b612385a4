"""What the consortium's server runs: numpy and Flower, never torch; it sees no image and no model."""
