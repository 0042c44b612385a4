"""From the bytes of an image file to RGB pixels; anything doubtful is refused."""
