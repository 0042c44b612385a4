"""Central differential privacy: the strategy receives only the noisy mean of a round's clipped updates.

The sites must trust the server, because it receives every update without noise. The noise comes from the system's
cryptographic random source, so a round that a resumed run repeats gives another result.
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

_CLIP = "site privacy clip"  # a name that no strategy uses in its state


class NoisyMean(Aggregator):
    """An aggregator that gives the noisy mean of a round's updates to an inner strategy.

    Attributes:
        clip: the clipping norm C of the next round; it changes only with `adaptive`.
    """

    def __init__(
        self, inner: Aggregator, settings: SitePrivacySettings, *, rounds: int, entropy: Entropy = os.urandom
    ) -> None:
        """Wrap a strategy that requires only the mean of equally weighted sites.

        Args:
            inner: the strategy.
            settings: the settings of site privacy with central noise.
            rounds: the number of rounds of the run; the noise for a given ε depends on it.
            entropy: the source of random bytes; only tests use another source than the system's.

        Raises:
            ValueError: if no noise level satisfies the given ε.
        """
        self._inner, self._adaptive, self._entropy = inner, settings.adaptive, entropy
        noise = find_site_noise(settings.noise_multiplier, settings.epsilon, settings.delta, rounds=rounds)
        self._noise, self._count_noise = noise, 0.0
        if settings.adaptive is not None:
            self._noise, self._count_noise = split_noise(noise, settings.adaptive.count_noise)
        self.clip = settings.clip

    def aggregate(self, round_number: int, payload: Vector, updates: Sequence[Update]) -> Vector:
        """Return the inner strategy's payload for the noisy mean of the updates."""
        clipped = [clip_update(payload, update.payload, self.clip) for update in updates]
        total = add_noise(
            np.sum([update for update, _ in clipped], axis=0), self._noise * self.clip, entropy=self._entropy
        )
        mean = (payload + total / len(updates)).astype(np.float32)
        self._adapt(round_number, [length for _, length in clipped])
        # Strategies that work on the mean read neither loss nor steps.
        noisy = Update("the noisy mean", mean, len(updates), loss=0.0, steps=1)
        return self._inner.aggregate(round_number, payload, [noisy])

    def state(self) -> dict[str, Vector]:
        """Return the inner strategy's state and the clipping norm."""
        return {**self._inner.state(), _CLIP: np.array([self.clip], dtype=np.float32)}

    def load_state(self, state: Mapping[str, Vector], payload: Vector) -> None:
        """Restore the inner strategy's state and the clipping norm; see `Aggregator.load_state`."""
        if _CLIP not in state:
            raise ValueError("the state belongs to a run without central noise")
        self.clip = float(state[_CLIP][0])
        self._inner.load_state({name: value for name, value in state.items() if name != _CLIP}, payload)

    def _adapt(self, round_number: int, lengths: Sequence[float]) -> None:
        """Adapt the clipping norm to the norms of the updates; only a noisy count of these norms is used."""
        if self._adaptive is None:
            return
        short = sum(length <= self.clip for length in lengths)
        noisy = short + self._count_noise * float(draw_normal(1, entropy=self._entropy)[0])
        quantile, rate = self._adaptive.quantile, self._adaptive.rate
        self.clip = adapt_clip(self.clip, short=noisy, sites=len(lengths), quantile=quantile, rate=rate)
        _log.info("round %d: the next clipping norm is %.4g", round_number, self.clip)
