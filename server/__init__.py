"""The code of the consortium's server; it uses numpy and Flower but not torch, and has no images and no model."""
