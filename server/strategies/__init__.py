"""Aggregation: the rules as pure functions, and the strategies built from them and from Flower's."""
