"""Central noise: the mean of a round's clipped updates, with noise, and then the strategy, which sees nothing else.

The server is trusted to add it, and sees every update before it does. Noise comes from the system's cryptographic
source, so a round that a resumed run repeats does not come out the same.
"""

import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np

from ept_fed.config.privacy import SitePrivacySettings
from ept_fed.privacy.dp.noise import Entropy, draw_normal
from ept_fed.privacy.dp.site_noise import adapt_clip, add_noise, clip_update, find_site_noise, split_noise
from ept_fed.protocol.layout import Vector
from server.strategies.base import Aggregator, Update

__all__ = ["NoisyMean"]

_log = logging.getLogger(__name__)

_CLIP = "site privacy clip"  # a name that no strategy's memory has


class NoisyMean(Aggregator):
    """A strategy that is given the noisy mean of a round's updates, instead of them.

    Attributes:
        clip: C of the next round; moves only with `adaptive`.
    """

    def __init__(
        self, inner: Aggregator, settings: SitePrivacySettings, *, rounds: int, entropy: Entropy = os.urandom
    ) -> None:
        """Wrap a strategy that needs no more than the mean of equally weighted sites.

        Args:
            inner: the strategy.
            settings: whose noise is central.
            rounds: of the run, which the noise for an ε depends on.
            entropy: random bytes; another source than the system's is for tests.

        Raises:
            ValueError: for an ε that no noise keeps.
        """
        self._inner, self._adaptive, self._entropy = inner, settings.adaptive, entropy
        noise = find_site_noise(settings.noise_multiplier, settings.epsilon, settings.delta, rounds=rounds)
        self._noise, self._count_noise = noise, 0.0
        if settings.adaptive is not None:
            self._noise, self._count_noise = split_noise(noise, settings.adaptive.count_noise)
        self.clip = settings.clip

    def aggregate(self, round_number: int, payload: Vector, updates: Sequence[Update]) -> Vector:
        """Return what the strategy makes of the noisy mean."""
        clipped = [clip_update(payload, update.payload, self.clip) for update in updates]
        total = add_noise(
            np.sum([update for update, _ in clipped], axis=0), self._noise * self.clip, entropy=self._entropy
        )
        mean = (payload + total / len(updates)).astype(np.float32)
        self._adapt(round_number, [length for _, length in clipped])
        # Strategies that need no more than the mean look at neither loss nor steps.
        noisy = Update("the noisy mean", mean, len(updates), loss=0.0, steps=1)
        return self._inner.aggregate(round_number, payload, [noisy])

    def state(self) -> dict[str, Vector]:
        """Return the strategy's memory, and the clip."""
        return {**self._inner.state(), _CLIP: np.array([self.clip], dtype=np.float32)}

    def load_state(self, state: Mapping[str, Vector], payload: Vector) -> None:
        """Take both back; see `Aggregator.load_state`."""
        if _CLIP not in state:
            raise ValueError("the state is of a run without central noise")
        self.clip = float(state[_CLIP][0])
        self._inner.load_state({name: value for name, value in state.items() if name != _CLIP}, payload)

    def _adapt(self, round_number: int, lengths: Sequence[float]) -> None:
        """Let the clip follow the updates, of whose lengths only a noisy count is used."""
        if self._adaptive is None:
            return
        short = sum(length <= self.clip for length in lengths)
        noisy = short + self._count_noise * float(draw_normal(1, entropy=self._entropy)[0])
        quantile, rate = self._adaptive.quantile, self._adaptive.rate
        self.clip = adapt_clip(self.clip, short=noisy, sites=len(lengths), quantile=quantile, rate=rate)
        _log.info("round %d: the clip goes on at %.4g", round_number, self.clip)
