"""EPT-Fed: federated embedded prompt tuning of one frozen vision transformer.

All modules use these axes: B batch, S sites, L prompted layers, N tokens, M prompt length, H heads, d head dim,
D embed dim, C classes, T context tokens per layer. A *prompt* has shape (L, N + T, M). A *sink* is the fold of a
prompt and has shape (L, N + T). A *payload* is the set of tensors that a site and the server exchange.
"""

__version__ = "0.2.0"
