"""Tensors from settings: MONAI transforms, caches, and each site's training, validation and test images."""
