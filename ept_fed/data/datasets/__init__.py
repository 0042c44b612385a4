"""From settings to tensors: MONAI transforms, caches, and each site's training, validation and test images."""
