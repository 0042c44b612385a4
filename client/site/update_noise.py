"""What becomes of a site's update before it leaves, where noise covers whole sites: it is clipped and made noisy."""

import math
import os
from dataclasses import dataclass

import numpy as np

from client.site.privacy_cost import RoundCost
from client.site.privacy_plan import plan_noisy_round
from ept_fed.config.privacy import SitePrivacySettings
from ept_fed.privacy.dp.noise import Entropy
from ept_fed.privacy.dp.site_noise import LARGEST_START, add_noise, clip_update, find_site_noise
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import MessageRefusedError, RoundRequest

__all__ = ["UpdateNoise"]


@dataclass(frozen=True)
class UpdateNoise:
    """The noise that a run agreed on for whole updates.

    It is drawn anew each time: who could see two draws on one update would see it with less. So a round's update is
    made once, and leaves again bit for bit or not at all; a round that is trained again is charged again.

    Attributes:
        settings: of the run.
        rounds: of the run, which the noise for an ε depends on.
        masked: whether updates leave under secure aggregation.
        entropy: random bytes; another source than the system's is for tests.
    """

    settings: SitePrivacySettings
    rounds: int
    secure_aggregation: bool = False
    entropy: Entropy = os.urandom

    def plan(self, request: RoundRequest) -> RoundCost:
        """Return what the round costs the site.

        Raises:
            MessageRefusedError: for a request that the noise would not cover.
        """
        if request.wants_gradient:
            raise MessageRefusedError("federation.site_privacy: the gradient over all images has no noise, and stays")
        if self.secure_aggregation and np.abs(request.payload).max() > LARGEST_START:
            raise MessageRefusedError(f"prompts beyond {LARGEST_START:g} leave no room for noise and masks")
        return plan_noisy_round(self.settings, self.rounds)

    def cover(self, received: Vector, trained: Vector, *, shares: int = 1) -> Vector:
        """Return the payload (n,) that may leave.

        Args:
            received: the payload that the round began with.
            trained: the payload that it ended with.
            shares: in how many parts distributed noise is added: one by each of the fewest sites of a sum.

        Raises:
            ValueError: for numbers that are not finite.
        """
        private = self.settings
        if private.noise == "central":
            # The server clips, as only it knows a clip that follows the updates.
            return trained
        update, _ = clip_update(received, trained, private.clip)
        noise = find_site_noise(private.noise_multiplier, private.epsilon, private.delta, rounds=self.rounds)
        parts = shares if private.noise == "distributed" else 1
        noisy = add_noise(update, noise * private.clip / math.sqrt(parts), entropy=self.entropy)
        return (received + noisy).astype(np.float32)
