"""Decoding of image files to RGB pixels; invalid files are refused."""
