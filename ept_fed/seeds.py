"""Seeds and generators for random choices; each choice has its own, derived from its purpose."""

import hashlib

import numpy as np

__all__ = ["derive_seed", "numpy_generator"]


def derive_seed(run_seed: int, *scope: str | int) -> int:
    """Derive a 63-bit seed from the run's seed and a scope such as (site, round, purpose).

    Two different scopes give unrelated seeds, so the results do not depend on the order in which sites run.
    The parts are length-prefixed, so ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.sha256()
    for part in (run_seed, *scope):
        encoded = f"{type(part).__name__}:{part}".encode()
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def numpy_generator(run_seed: int, *scope: str | int) -> np.random.Generator:
    """Return a separate numpy generator for a scope; see `derive_seed`."""
    return np.random.default_rng(derive_seed(run_seed, *scope))
