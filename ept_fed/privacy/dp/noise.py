"""Secret random draws: normal noise and Poisson samples from the operating system's cryptographic source.

The draws never use a seed of the run, because the server has that seed. An attacker who can draw the noise again can
subtract it. Against an attacker who can compute which images were drawn, subsampling has no effect. For this reason, a
private round is not reproducible.

Numbers of finite precision are not real numbers (Mironov 2012). A draw has 53 random bits, goes through the inverse of
the normal distribution and is added in float64. Only then is the sum rounded to float32, which hides the pattern of the
draws' last bits. This is a precaution, not a proof. No draw is further than 8.3 standard deviations from 0 (probability
below 10⁻¹⁵).
"""

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["Entropy", "draw_normal", "draw_poisson_sample"]

Entropy = Callable[[int], bytes]


def draw_normal(count: int, *, entropy: Entropy = os.urandom) -> npt.NDArray[np.float64]:
    """Return `count` independent draws from the standard normal distribution; `entropy(n)` returns n random bytes."""
    from scipy.special import ndtri  # slow to import; planning and verifying costs draw nothing

    normal: npt.NDArray[np.float64] = ndtri(_draw_uniform(count, entropy))
    return normal


def draw_poisson_sample(count: int, rate: float, *, entropy: Entropy = os.urandom) -> npt.NDArray[np.int64]:
    """Return a Poisson sample of 0 … count - 1, ascending: each is drawn independently with probability `rate`.

    Raises:
        ValueError: if the rate is not above 0 and at most 1.
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"rate = {rate}: must be above 0 and at most 1")
    return np.flatnonzero(_draw_uniform(count, entropy) < rate).astype(np.int64)


def _draw_uniform(count: int, entropy: Entropy) -> npt.NDArray[np.float64]:
    """Return uniform draws from the midpoints of 2⁵³ equal parts of (0, 1)."""
    whole = np.frombuffer(entropy(8 * count), dtype=np.uint64) >> np.uint64(11)
    # The last midpoint rounds to 1, where the normal's inverse is infinite.
    return np.minimum((whole + 0.5) * 2.0**-53, 1.0 - 2.0**-53)
