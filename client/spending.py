"""What private training cost a site, in the words of its report."""

from collections.abc import Sequence
from typing import Any

from client.budget import Charged
from ept_fed.config import TrainingSettings
from ept_fed.privacy.accountant import spent_epsilon
from ept_fed.training.private_loop import plan_private_round

__all__ = ["describe_charges", "describe_private_rounds"]


def describe_private_rounds(
    training: TrainingSettings, images: int, trained: int, rounds: int
) -> dict[str, Any] | None:
    """Return (ε, δ) of a site that trained some of a run's rounds and keeps no budget; None for a run without noise.

    Args:
        training: settings of the run.
        images: the site's training images.
        trained: rounds that it trained.
        rounds: of the run.
    """
    if training.privacy is None:
        return None
    delta = training.privacy.delta
    epsilon = spent_epsilon([plan_private_round(training, images, rounds)] * trained, delta)
    return {"epsilon": epsilon, "delta": delta, "rounds": trained, "epsilon_of_all_runs": None}


def describe_charges(charged: Sequence[Charged], run: str) -> dict[str, Any] | None:
    """Return (ε, δ) of a run by the site's own budget, a round that was trained twice counting twice; None without any.

    Args:
        charged: every private round of the site, oldest first.
        run: the run.
    """
    own = [line for line in charged if line.run == run]
    if not own:
        return None
    delta = own[-1].delta
    return {
        "epsilon": spent_epsilon([line.spending for line in own], delta),
        "delta": delta,
        "rounds": len(own),
        "epsilon_of_all_runs": spent_epsilon([line.spending for line in charged], delta),
    }
