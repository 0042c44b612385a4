"""Noise for the updates of whole sites: clipping, the noise, its privacy cost, and a clip that follows the updates.

A site's update is u = y - x, from the payload x it received to the payload y it trained. The update is scaled down to
length C, and the sum over sites gets normal noise of standard deviation σC (McMahan et al. 2018, arXiv 1710.06963).

Two federations are neighbours if all training images of one site are replaced by any others. The clipped update of that
site may then reverse its direction, so a sum moves by 2C, and a round costs as much as the plain Gaussian mechanism
with the multiplier σ/2. If neighbours differ in one site being present or absent, σ gives the ε that 2σ gives here. The
guarantee holds for all images of a site together, and therefore for each image.

The party that adds the noise determines whom a site has to trust:

* local: each site adds all of the noise and trusts nobody.
* distributed: each of at least t sites adds a share of variance (σC)²/t, and only secure aggregation releases the sum.
  A site trusts its peers: if k of them add no noise or reveal theirs, σ is effectively √((t - k)/t) times as large.
* central: the server adds the noise. A site trusts the server, which sees every update.

Under secure aggregation every site rounds to the fixed-point step before the sum. If the noise is a thousand steps wide
(`MIN_STEPS`), the rounding errors are uniform and independent of the update, except for one part in exp(10⁷). So they
do not weaken the guarantee.

Not covered: noise of finite precision, see `ept_fed.privacy.dp.noise`, and data that a site sends besides its update.
Drawing a subset of the sites for a round gives no amplification, because the server can see which sites were drawn.
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

MIN_STEPS = 1000.0  # fixed-point steps in the standard deviation of one site's share
# Under secure aggregation, a round may begin with numbers up to this absolute value. The limit keeps every noisy update
# within the fixed-point range: a number outside it would be refused, and the refusal would leak information about it.
LARGEST_START = 32.0
MAX_DEVIATIONS = 8.5  # bound on the draws of `draw_normal`

Update = npt.NDArray[np.float64]


def clip_update(received: Vector, trained: Vector, clip: float) -> tuple[Update, float]:
    """Return the update (n,), scaled down to length `clip` if it is longer, and its original length.

    Raises:
        ValueError: for numbers that are not finite, because no clip bounds them.
    """
    update = trained.astype(np.float64) - received.astype(np.float64)
    length = float(np.linalg.norm(update))
    if not math.isfinite(length):
        raise ValueError("the update has numbers that are not finite")
    return (update if length <= clip else update * (clip / length)), length


def add_noise(update: Update, deviation: float, *, entropy: Entropy = os.urandom) -> Update:
    """Return the update (n,) with normal noise of this standard deviation added to each number."""
    return update + deviation * draw_normal(len(update), entropy=entropy)


def find_site_noise(noise_multiplier: float | None, epsilon: float | None, delta: float, *, rounds: int) -> float:
    """Return σ: the given value, or the smallest value with which `rounds` rounds cost at most ε at δ.

    Raises:
        ValueError: for an ε that no noise achieves.
    """
    if noise_multiplier is not None:
        return noise_multiplier
    return 2.0 * find_noise_multiplier(float(epsilon or 0.0), delta, sampling_rate=1.0, steps=rounds)


def cost_of_round(noise_multiplier: float) -> GaussianSteps:
    """Return the cost of one round for a site, where neighbours differ in all images of one site."""
    return GaussianSteps(noise_multiplier / 2.0, 1.0, 1)


def split_noise(noise_multiplier: float, count_noise: float | None) -> tuple[float, float]:
    """Return the noise multiplier z for the updates and the deviation b for their count, which together cost σ.

    The count is of the updates that are not longer than the clip. It is centred: each site contributes 1/2 or -1/2. If
    a site is present or absent, it moves the count by 1/2 and the sum of the updates by C: σ⁻² = z⁻² + (2b)⁻² (Andrew
    et al. 2021, arXiv 1905.03871, Theorem 1). If its images are replaced, both double.

    Raises:
        ValueError: if the count has so little noise that the count by itself costs more than σ.
    """
    deviation = 2.0 * noise_multiplier if count_noise is None else count_noise
    if not 2.0 * deviation > noise_multiplier:
        raise ValueError(f"count_noise = {deviation:g}: must be above half the noise multiplier {noise_multiplier:.4g}")
    return (noise_multiplier**-2 - (2.0 * deviation) ** -2) ** -0.5, deviation


def adapt_clip(clip: float, *, short: float, sites: int, quantile: float, rate: float) -> float:
    """Return the next round's clip from `short`, the noisy count of updates that were not longer than this clip.

    Noise can move the share of these updates below 0 or above 1. The share is limited to this range, so that one step
    changes the clip by a factor of at most exp(rate).
    """
    share = min(1.0, max(0.0, short / sites))
    return clip * math.exp(-rate * (share - quantile))
