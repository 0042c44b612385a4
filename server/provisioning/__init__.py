"""Kits, and the certificate authority that certifies their keys."""
