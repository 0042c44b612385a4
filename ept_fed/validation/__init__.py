"""Validators of settings and data; they report all problems together, each with its field, value and fix."""
