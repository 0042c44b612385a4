"""Secret draws: normal noise and Poisson samples from the operating system's cryptographic source.

Never from a seed of the run, which the server knows: who can draw the noise again can subtract it, and who knows which
images were drawn loses nothing to subsampling. So a private round does not come out the same twice.

Numbers of finite precision are not real numbers (Mironov 2012). A draw has 53 random bits, goes through the inverse of
the normal distribution, is added in float64 and only then rounded to float32, which hides the pattern of the draws'
last bits; that is a precaution, not a proof. No draw is further than 8.3 standard deviations from 0 (probability below
10⁻¹⁵).
"""

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

__all__ = ["Entropy", "draw_normal", "draw_poisson_sample"]

Entropy = Callable[[int], bytes]


def draw_normal(count: int, *, entropy: Entropy = os.urandom) -> npt.NDArray[np.float64]:
    """Return `count` independent draws from the standard normal distribution; `entropy(n)` gives n random bytes."""
    normal: npt.NDArray[np.float64] = ndtri(_draw_uniform(count, entropy))
    return normal


def draw_poisson_sample(count: int, rate: float, *, entropy: Entropy = os.urandom) -> npt.NDArray[np.int64]:
    """Return, in ascending order, those of 0 … count - 1 that were drawn, each independently with probability `rate`.

    Raises:
        ValueError: if the rate is not above 0 and at most 1.
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"rate = {rate}: must be above 0 and at most 1")
    return np.flatnonzero(_draw_uniform(count, entropy) < rate).astype(np.int64)


def _draw_uniform(count: int, entropy: Entropy) -> npt.NDArray[np.float64]:
    """Return draws from the 2⁵³ midpoints of equal parts of (0, 1)."""
    whole = np.frombuffer(entropy(8 * count), dtype=np.uint64) >> np.uint64(11)
    # The last midpoint rounds to 1, where the normal's inverse is infinite.
    return np.minimum((whole + 0.5) * 2.0**-53, 1.0 - 2.0**-53)
