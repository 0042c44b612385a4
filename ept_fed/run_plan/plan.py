"""The plan of a run: all that a server needs, without a model.

Whoever has the backbone makes the plan (`ept-fed simulate` does); the server reads it with numpy alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ept_fed.config.experiment import TrainingSettings
from ept_fed.config.privacy import SitePrivacySettings
from ept_fed.privacy.secure_aggregation.round_session import count_min_sites, plan_session
from ept_fed.privacy.secure_aggregation.session import AggregationSession
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import Header

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """One federated run.

    Attributes:
        run: identity of the run, the same for equal settings.
        seed: run seed, from which every other seed is derived.
        backbone_digest: SHA-256 every site must have.
        layout: of the payload.
        initial: the payload of round 0, layout.size float32.
        rounds: how many.
        sites: registered names of the sites that take part, sorted.
        strategy: a name of `ept_fed.catalog.strategies`.
        options: every option of the strategy.
        averaging, weights, weight_cap, sites_per_round, quorum, deadline, grace, norm_bound, patience and target_auc:
            as in `FederationSettings`.
        max_examples: most training images that a site may claim, by site; a site that is not named may claim any.
        training: JSON of the training settings, sent with each train request.
        secure_sites: names of all sites that the run was proposed to, if their updates are masked; empty: in plaintext.
        secure_threshold: as in `SecureAggregationSettings`.
        site_privacy: as in `FederationSettings`.
    """

    run: str
    seed: int
    backbone_digest: str
    layout: PayloadLayout
    initial: Vector
    rounds: int
    sites: tuple[str, ...]
    training: str
    strategy: str = "fedavg"
    options: Mapping[str, float] = field(default_factory=dict)
    averaging: Literal["mean", "log_mean_exp"] = "mean"
    weights: Literal["examples", "uniform", "capped"] = "examples"
    weight_cap: int | None = None
    sites_per_round: float = 1.0
    quorum: int | None = None
    deadline: float = 3600.0
    grace: float = 30.0
    norm_bound: float | None = None
    max_examples: Mapping[str, int] = field(default_factory=dict)
    patience: int | None = None
    target_auc: float | None = None
    secure_sites: tuple[str, ...] = ()
    secure_threshold: int | None = None
    site_privacy: SitePrivacySettings | None = None

    def max_steps(self, examples: int) -> int:
        """Return the optimiser steps of one round on so many images, by the training settings that the sites get."""
        return TrainingSettings.model_validate_json(self.training).max_steps(examples)

    @property
    def silent(self) -> bool:
        """Whether replies carry neither loss nor quality, as neither has noise."""
        return self.site_privacy is not None and not self.site_privacy.metrics

    @property
    def min_secure_sites(self) -> int:
        """How many sites have to stay for a sum under secure aggregation; 0 where updates come in plaintext."""
        return count_min_sites(len(self.secure_sites), self.secure_threshold) if self.secure_sites else 0

    def session(self, round_number: int, start: str) -> AggregationSession:
        """Return the secure aggregation of a round (1-based); `start` is the digest of what it began with.

        Raises:
            InputRefusedError: if the run has none, or too few sites for it.
        """
        return plan_session(
            run=self.run,
            round_number=round_number,
            start=start,
            sites=self.secure_sites,
            threshold=self.secure_threshold,
            layout=self.layout,
            weights=self.weights,
            weight_cap=self.weight_cap,
        )

    def header(self, round_number: int) -> Header:
        """Return the header of this run's messages in a round (1-based)."""
        return Header(self.run, round_number, self.backbone_digest, self.layout.hash)
