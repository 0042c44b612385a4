"""Assignment of images to sites and splits, and selection of the images to use; pure functions over records."""
