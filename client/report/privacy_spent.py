"""The privacy cost of a site's private rounds, as entries of its report."""

from collections.abc import Sequence
from typing import Any

from client.gate.privacy_budget import Charged
from client.site.privacy_plan import Mechanism, RoundCost, plan_noisy_round, plan_private_round
from ept_fed.config.experiment import Experiment
from ept_fed.privacy.dp.accountant import spent_epsilon

__all__ = ["describe_charges", "describe_private_rounds", "is_silent"]


def describe_private_rounds(experiment: Experiment, images: int, trained: int) -> dict[str, Any] | None:
    """Return (ε, δ) of a site without a budget for the rounds of a run that it trained; None for a run without noise.

    Args:
        experiment: the settings of the run.
        images: the number of the site's training images.
        trained: the number of rounds that the site trained.
    """
    cost = _plan(experiment, images)
    if cost is None:
        return None
    return {
        "covers": _covers(cost.mechanism),
        "noise": cost.mechanism.partition(" ")[0],
        "silent": is_silent(experiment),
        "epsilon": spent_epsilon([cost.spending] * trained, cost.delta),
        "delta": cost.delta,
        "rounds": trained,
        "epsilon_of_all_runs": None,
    }


def describe_charges(charged: Sequence[Charged], run: str, *, silent: bool) -> dict[str, Any] | None:
    """Return (ε, δ) of a run from the site's budget, or None if the run has no private round.

    A round that was trained twice counts twice.

    Args:
        charged: every private round of the site, oldest first.
        run: the run.
        silent: whether loss and quality metrics were kept at the site.
    """
    own = [line for line in charged if line.run == run]
    if not own:
        return None
    delta = own[-1].delta
    return {
        "covers": _covers(own[-1].mechanism),
        "noise": own[-1].mechanism.partition(" ")[0],
        "silent": silent,
        "epsilon": spent_epsilon([line.spending for line in own], delta),
        "delta": delta,
        "rounds": len(own),
        "epsilon_of_all_runs": spent_epsilon([line.spending for line in charged], delta),
    }


def is_silent(experiment: Experiment) -> bool:
    """Return whether the sites sent only data that the noise covers, and their numbers of images and steps."""
    private = experiment.federation.site_privacy
    return private is not None and not private.metrics


def _plan(experiment: Experiment, images: int) -> RoundCost | None:
    """Return the privacy cost of each round of a run, or None without noise."""
    training, federation = experiment.training, experiment.federation
    if training.privacy is not None:
        spending = plan_private_round(training, images, federation.rounds)
        return RoundCost("poisson-subsampled gaussian", spending, training.privacy.clip, training.privacy.delta)
    private = federation.site_privacy
    return None if private is None else plan_noisy_round(private, federation.rounds)


def _covers(mechanism: Mechanism) -> str:
    return "image" if mechanism == "poisson-subsampled gaussian" else "site"
