"""EPT-Fed: embedded prompt tuning of one frozen vision transformer, federated.

Axes, everywhere: B batch, S sites, L prompted layers, N tokens, M prompt length, H heads, d head dim, D embed dim,
C classes, T context tokens per layer. A *prompt* is (L, N + T, M), a *sink* its fold (L, N + T), a *payload* what
travels.
"""

__version__ = "0.2.0"
