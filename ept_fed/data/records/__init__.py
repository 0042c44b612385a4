"""Records of the images before any image is opened, and counts over these records."""
