"""Noise for the updates of whole sites: clipping, the noise and its cost, and a clip that follows the updates.

A site's update u = y - x, from the payload x it received to the payload y it trained, is scaled down to length C, and
the sum over sites gets normal noise of standard deviation σC (McMahan et al. 2018, arXiv 1710.06963). Neighbours here
are two federations of which one site has any other training images: its clipped update may turn round, so a sum moves
by 2C, and a round costs what the plain Gaussian mechanism with the multiplier σ/2 costs. Whoever counts a site as
present or absent states the ε of this one for twice the σ. As it holds for all images of a site, it holds for each.

Who adds the noise decides who has to be trusted. local: each site all of it, nobody. distributed: each of at least t
sites a share of variance (σC)²/t, to a sum that only masks let out: its peers; if k of them add none, or tell theirs,
σ is as if √((t - k)/t) times as large. central: the server, which sees every update.

Under secure aggregation every site rounds to the fixed-point step before the sum. The errors of noise that is a
thousand steps wide (`MIN_STEPS`) are uniform and know nothing of the update, but for a part in exp(10⁷); so they take
nothing away.

Not covered: noise of finite precision, see `ept_fed.privacy.dp.noise`; what a site says beside its update. Drawing
some of the sites for a round is no amplification: the server knows who was drawn.
"""

import math
import os

import numpy as np
import numpy.typing as npt

from ept_fed.privacy.dp.accountant import GaussianSteps, find_noise_multiplier
from ept_fed.privacy.dp.noise import Entropy, draw_normal
from ept_fed.protocol.layout import Vector

__all__ = [
    "LARGEST_START",
    "MAX_DEVIATIONS",
    "MIN_STEPS",
    "adapt_clip",
    "add_noise",
    "clip_update",
    "cost_of_round",
    "find_site_noise",
    "split_noise",
]

MIN_STEPS = 1000.0  # of fixed point, in the standard deviation of one site's share
# Under secure aggregation a round may begin with numbers up to here, so that no update with noise is beyond fixed
# point: whether one is would tell of it. `draw_normal` gives none further than so many deviations.
LARGEST_START = 32.0
MAX_DEVIATIONS = 8.5

Update = npt.NDArray[np.float64]


def clip_update(received: Vector, trained: Vector, clip: float) -> tuple[Update, float]:
    """Return the update (n,), no longer than `clip`, and how long it was.

    Raises:
        ValueError: for numbers that are not finite, which no clip bounds.
    """
    update = trained.astype(np.float64) - received.astype(np.float64)
    length = float(np.linalg.norm(update))
    if not math.isfinite(length):
        raise ValueError("the update has numbers that are not finite")
    return (update if length <= clip else update * (clip / length)), length


def add_noise(update: Update, deviation: float, *, entropy: Entropy = os.urandom) -> Update:
    """Return the update (n,) with normal noise of this standard deviation on each number."""
    return update + deviation * draw_normal(len(update), entropy=entropy)


def find_site_noise(noise_multiplier: float | None, epsilon: float | None, delta: float, *, rounds: int) -> float:
    """Return σ: as it is given, or the least with which so many rounds cost at most ε at δ.

    Raises:
        ValueError: for an ε that no noise keeps.
    """
    if noise_multiplier is not None:
        return noise_multiplier
    return 2.0 * find_noise_multiplier(float(epsilon or 0.0), delta, sampling_rate=1.0, steps=rounds)


def cost_of_round(noise_multiplier: float) -> GaussianSteps:
    """Return what one round costs a site whose images may be exchanged for any others."""
    return GaussianSteps(noise_multiplier / 2.0, 1.0, 1)


def split_noise(noise_multiplier: float, count_noise: float | None) -> tuple[float, float]:
    """Return the multiplier for the updates, and the deviation for their count, that together cost σ.

    Counted from a half, one site's being longer or not moves the count by 1/2, present or absent, where its update
    moves the sum by C: σ⁻² = z⁻² + (2b)⁻² (Andrew et al. 2021, arXiv 1905.03871, Theorem 1). Both double when its
    images are exchanged.

    Raises:
        ValueError: for a count with so little noise that it alone costs more than σ.
    """
    deviation = 2.0 * noise_multiplier if count_noise is None else count_noise
    if not 2.0 * deviation > noise_multiplier:
        raise ValueError(f"count_noise = {deviation:g}: must be above half the noise multiplier {noise_multiplier:.4g}")
    return (noise_multiplier**-2 - (2.0 * deviation) ** -2) ** -0.5, deviation


def adapt_clip(clip: float, *, short: float, sites: int, quantile: float, rate: float) -> float:
    """Return the next round's clip from how many, with noise, of the sites' updates were not longer than this one.

    A share beyond 0 or 1 is noise alone, and is cut to them, so that no step is longer than a factor exp(rate).
    """
    share = min(1.0, max(0.0, short / sites))
    return clip * math.exp(-rate * (share - quantile))
