"""Aggregation: the rules as pure functions, and the strategies that use them or Flower's strategies."""
