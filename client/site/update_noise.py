"""Clipping and noise for a site's whole update, in runs with differential privacy per site."""

import math
import os
from dataclasses import dataclass

import numpy as np

from client.site.privacy_plan import RoundCost, plan_noisy_round
from ept_fed.config.privacy import SitePrivacySettings
from ept_fed.privacy.dp.noise import Entropy
from ept_fed.privacy.dp.site_noise import LARGEST_START, add_noise, clip_update, find_site_noise
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import MessageRefusedError, RoundRequest

__all__ = ["UpdateNoise"]


@dataclass(frozen=True)
class UpdateNoise:
    """The noise on whole updates that was agreed on for a run.

    It is drawn anew each time. Two draws on one update would hide it less than one. So a round's update is made once;
    it may be sent again only if it is identical bit for bit. A round that is trained again is charged again.

    Attributes:
        settings: the run's settings of the noise.
        rounds: number of rounds in the run; the noise for a given ε depends on it.
        secure_aggregation: whether updates leave under secure aggregation.
        entropy: source of random bytes; only tests use another one than the system's.
    """

    settings: SitePrivacySettings
    rounds: int
    secure_aggregation: bool = False
    entropy: Entropy = os.urandom

    def plan(self, request: RoundRequest) -> RoundCost:
        """Return the privacy cost of the round at the site.

        Raises:
            MessageRefusedError: for a request that the noise would not cover.
        """
        if request.wants_gradient:
            raise MessageRefusedError(
                "federation.site_privacy: the gradient over all images has no noise and must not leave"
            )
        if self.secure_aggregation and np.abs(request.payload).max() > LARGEST_START:
            raise MessageRefusedError(f"prompts with values above {LARGEST_START:g} leave no room for noise and masks")
        return plan_noisy_round(self.settings, self.rounds)

    def cover(self, received: Vector, trained: Vector, *, shares: int = 1) -> Vector:
        """Return the payload (n,) that may leave.

        Args:
            received: the payload that the round began with.
            trained: the payload that it ended with.
            shares: number of sites that add a part of distributed noise: the minimum number of sites in a sum.

        Raises:
            ValueError: for numbers that are not finite.
        """
        private = self.settings
        if private.noise == "central":
            # The server clips, because only it has an adaptive clip, which depends on all updates.
            return trained
        update, _ = clip_update(received, trained, private.clip)
        noise = find_site_noise(private.noise_multiplier, private.epsilon, private.delta, rounds=self.rounds)
        parts = shares if private.noise == "distributed" else 1
        noisy = add_noise(update, noise * private.clip / math.sqrt(parts), entropy=self.entropy)
        return (received + noisy).astype(np.float32)
