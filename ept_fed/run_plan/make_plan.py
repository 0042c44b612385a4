"""Making the server's plan from an experiment and from the values that depend on the sites' backbone."""

import math
from collections.abc import Mapping, Sequence

from ept_fed.catalog.strategies import STRATEGIES, resolve_options
from ept_fed.config.experiment import Experiment, FederationSettings, TrainingSettings
from ept_fed.privacy.secure_aggregation.round_session import count_min_sites
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.run_plan.plan import Plan

__all__ = ["agree_on_training", "make_plan", "min_agreeing_sites"]

_AS_THEY_ARE = {
    "averaging",
    "weights",
    "weight_cap",
    "sites_per_round",
    "quorum",
    "deadline",
    "grace",
    "norm_bound",
    "patience",
    "target_auc",
}


def make_plan(
    experiment: Experiment,
    run: str,
    *,
    examples: Mapping[str, int],
    backbone_digest: str,
    layout: PayloadLayout,
    initial: Vector,
    proposed_to: Sequence[str] | None = None,
) -> Plan:
    """Return the plan of an experiment.

    Args:
        experiment: a validated experiment.
        run: identity of the run in every message.
        examples: number of training images of each participating site, by its registered name; also the maximum that
            the site may claim, unless the experiment sets `federation.max_examples`.
        backbone_digest: SHA-256 of the backbone that every site has.
        layout: layout of the payload.
        initial: initial payload, layout.size float32.
        proposed_to: names of all sites that received the proposal; None: the sites in `examples`.
    """
    federation = experiment.federation
    options = resolve_options(federation.strategy, federation.options)
    return Plan(
        run=run,
        seed=experiment.seed,
        backbone_digest=backbone_digest,
        layout=layout,
        initial=initial,
        rounds=federation.rounds,
        sites=tuple(examples),
        training=agree_on_training(experiment.training, federation),
        strategy=federation.strategy,
        options=options,
        max_examples=_max_examples(experiment, examples),
        secure_sites=tuple(sorted(proposed_to or examples)) if federation.secure_aggregation else (),
        round_tolerance=federation.round_tolerance,
        site_privacy=federation.site_privacy,
        secure_threshold=federation.secure_aggregation.threshold if federation.secure_aggregation else None,
        **federation.model_dump(include=_AS_THEY_ARE),
    )


def min_agreeing_sites(federation: FederationSettings, sites: int) -> int:
    """Return the minimum number of the proposed `sites` that must agree, so that a run begins."""
    quorum = max(1, federation.quorum or math.ceil(sites / 2))
    if federation.secure_aggregation is None:
        return quorum
    # With fewer sites, no sum can be unmasked.
    return max(quorum, count_min_sites(sites, federation.secure_aggregation.threshold))


def agree_on_training(training: TrainingSettings, federation: FederationSettings) -> TrainingSettings:
    """Return the training settings of every train request of a run, with the strategy's proximal term included."""
    proximal = STRATEGIES[federation.strategy].proximal_option
    options = resolve_options(federation.strategy, federation.options)
    return training.model_copy(update={"proximal_mu": options[proximal] if proximal else 0.0})


def _max_examples(experiment: Experiment, known: Mapping[str, int]) -> dict[str, int]:
    agreed = experiment.federation.max_examples
    if agreed is None:
        return dict(known)
    return dict.fromkeys(known, agreed) if isinstance(agreed, int) else dict(agreed)
