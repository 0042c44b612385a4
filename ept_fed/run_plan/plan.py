"""The plan of a run: everything that a server needs, without a model.

A process that has the backbone makes the plan (for example `ept-fed simulate`). The server needs only numpy to read it.
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
    """The plan of one federated run.

    Attributes:
        run: identity of the run, the same for equal settings.
        seed: run seed, from which every other seed is derived.
        backbone_digest: SHA-256 of the backbone that every site must have.
        layout: layout of the payload.
        initial: the payload of round 0, layout.size float32.
        rounds: number of rounds.
        sites: registered names of the participating sites, sorted.
        strategy: a name of `ept_fed.catalog.strategies`.
        options: every option of the strategy.
        averaging, weights, weight_cap, sites_per_round, quorum, deadline, grace, norm_bound, patience, target_auc and
            round_tolerance: as in `FederationSettings`.
        max_examples: maximum number of training images that a site may claim, by site; no limit for a site that is
            not listed.
        training: the training settings, sent with each train request.
        secure_sites: names of all sites that received the proposal, if the run uses secure aggregation; empty: updates
            are sent in plaintext.
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
    training: TrainingSettings
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
    round_tolerance: float | None = None
    patience: int | None = None
    target_auc: float | None = None
    secure_sites: tuple[str, ...] = ()
    secure_threshold: int | None = None
    site_privacy: SitePrivacySettings | None = None

    def max_steps(self, examples: int) -> int:
        """Return the optimiser steps of one round on `examples` images, by the training settings sent to the sites."""
        return self.training.max_steps(examples)

    @property
    def silent(self) -> bool:
        """Whether replies contain no loss and no quality metrics, because no noise is added to them."""
        return self.site_privacy is not None and not self.site_privacy.metrics

    @property
    def min_secure_sites(self) -> int:
        """Minimum number of sites that must remain for a sum under secure aggregation; 0 for plaintext updates."""
        return count_min_sites(len(self.secure_sites), self.secure_threshold) if self.secure_sites else 0

    def session(self, round_number: int, start: str) -> AggregationSession:
        """Return the secure aggregation session of a round (1-based).

        Args:
            round_number: 1-based number of the round.
            start: digest of the payload and the training settings at the start of the round.

        Raises:
            InputRefusedError: if the run has no secure aggregation, or too few sites for it.
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
