"""Kits and the certificate authority behind them."""
