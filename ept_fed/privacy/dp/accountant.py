"""Privacy cost of Poisson-subsampled Gaussian noise: (ε, δ) by Rényi differential privacy (RDP).

The mechanism is that of DP-SGD (Abadi et al. 2016). A step draws every record independently with probability q, sums
the contributions of the drawn records, each of L2 norm at most C, and adds normal noise of standard deviation σC. σ is
the noise multiplier. Two data sets are neighbours if one holds one record more. Steps of any (σ, q) compose by adding
their Rényi divergences (Mironov et al. 2019). The sum is converted into ε for a δ at the best order (Canonne et al.
2020).

The arithmetic is that of Google's dp-accounting. It was released in 2026, needs no torch, and is the library in
Flower's own extra, although it exports no types. The tests compare it with Opacus, whose accountants import torch. The
same library offers privacy loss distributions, whose ε is about a tenth lower. RDP is used instead because it adds up
over rounds and is fast for any σ.

Not covered: data that is released besides the noisy sums, and draws or noise that an attacker can predict.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["GaussianSteps", "find_noise_multiplier", "spent_epsilon"]

# Integer orders have a closed form. Fractional orders need a series that does not always converge, and they matter only
# for ε above about 8.
_ORDERS = (*range(2, 129), 160, 192, 256, 384, 512, 768, 1024)
_LEAST_NOISE, _MAX_NOISE = 0.05, 1e4
_PRECISION = 1e-4


@dataclass(frozen=True)
class GaussianSteps:
    """Some steps of the Poisson-subsampled Gaussian mechanism.

    Attributes:
        noise_multiplier: σ, the noise's standard deviation divided by the clipping bound; above 0.
        sampling_rate: q, the probability with which a step draws a record; above 0, at most 1.
        steps: number of steps; at least 0.

    Raises:
        ValueError: for a number outside these ranges.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not 0.0 < self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier = {self.noise_multiplier}: must be a number above 0")
        if not 0.0 < self.sampling_rate <= 1.0:
            raise ValueError(f"sampling_rate = {self.sampling_rate}: must be above 0 and at most 1")
        if type(self.steps) is not int or self.steps < 0:
            raise ValueError(f"steps = {self.steps}: must be a whole number of at least 0")


def spent_epsilon(spending: Iterable[GaussianSteps], delta: float) -> float:
    """Return the ε that all these steps together cost at δ; 0 for no steps.

    Raises:
        ValueError: if δ is not between 0 and 1.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta = {delta}: must be between 0 and 1")
    steps: Counter[tuple[float, float]] = Counter()
    for part in spending:
        steps[part.noise_multiplier, part.sampling_rate] += part.steps
    divergence = np.zeros(len(_ORDERS))
    for (noise_multiplier, sampling_rate), count in steps.items():
        if count:
            divergence += count * _divergence_of_step(noise_multiplier, sampling_rate)
    if not divergence.any():
        return 0.0
    from dp_accounting.rdp import compute_epsilon

    epsilon, _ = compute_epsilon(_ORDERS, divergence, delta)
    return float(epsilon)


def find_noise_multiplier(epsilon: float, delta: float, *, sampling_rate: float, steps: int) -> float:
    """Return the smallest σ with which the steps cost at most ε at δ, by bisection to a relative precision of 10⁻⁴.

    Raises:
        ValueError: for arguments out of range, or an ε that no σ up to 10,000 achieves.
    """
    if not 0.0 < epsilon < math.inf or steps < 1:
        raise ValueError(f"epsilon = {epsilon} over {steps} steps: both must be above 0")

    def keeps(noise_multiplier: float) -> bool:
        return spent_epsilon([GaussianSteps(noise_multiplier, sampling_rate, steps)], delta) <= epsilon

    if not keeps(_MAX_NOISE):
        raise ValueError(f"no noise keeps {steps} steps within epsilon = {epsilon} at delta = {delta}")
    low, high = _LEAST_NOISE, _MAX_NOISE
    if keeps(low):
        return low
    while high / low > 1.0 + _PRECISION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


@lru_cache(maxsize=4096)
def _divergence_of_step(noise_multiplier: float, sampling_rate: float) -> npt.NDArray[np.float64]:
    """Return the Rényi divergence of one step at every order."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(_ORDERS)
    accountant.compose(PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier)))
    divergence: npt.NDArray[np.float64] = np.asarray(accountant.rdp, dtype=np.float64)
    return divergence
