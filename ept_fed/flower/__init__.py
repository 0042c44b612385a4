"""Conversion of protocol values to and from Flower messages; no other folder of the library imports flwr."""
