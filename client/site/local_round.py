"""One round of training at a site: from the state before it to the state after it, including Ditto's personal model."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from client.site.state_store import (
    SiteState,
    Tensors,
    capture_model,
    capture_optimizer,
    restore_model,
    restore_optimizer,
)
from ept_fed.config.experiment import TrainingSettings
from ept_fed.data.datasets.prepare import CachedDataset
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.privacy.dp.accountant import GaussianSteps
from ept_fed.seeds import derive_seed
from ept_fed.training.lda_head import HeadFit
from ept_fed.training.loop import RoundScope, TrainingDivergedError, TrainingOutcome, train_round
from ept_fed.training.optimizer import build_optimizer
from ept_fed.training.penalties import ProximalTerm
from ept_fed.training.private_loop import train_private_round

__all__ = ["DITTO", "noop_local_round", "train_local_round"]

DITTO = "ditto"

_log = logging.getLogger(__name__)

Penalty = Callable[[], Tensor]


def train_local_round(
    model: TunedViT,
    images: CachedDataset,
    settings: TrainingSettings,
    scope: RoundScope,
    *,
    before: SiteState | None,
    penalties: Sequence[Penalty],
    ditto: tuple[ProximalTerm, Tensors] | None = None,
    head: HeadFit | None = None,
    private: GaussianSteps | None = None,
) -> tuple[TrainingOutcome, SiteState]:
    """Train the model in place, and return the outcome of the round and the state to keep.

    Args:
        model: the model at the start of the round, with the site's own tensors and the received payload.
        images: the site's training images.
        settings: training settings of the round.
        scope: seed, site and number of the round.
        before: the state before the round, None at the start; its optimiser moments are used if the settings are equal.
        penalties: penalties of the strategy, see `ept_fed.training.penalties`.
        ditto: the proximal term that pulls the personal model towards the received payload, and the tensors that it
            starts from in the first round (Li et al. 2021, Algorithm 1); None keeps no such model.
        head: see `train_round`.
        private: planned cost of the round, from `plan_private_round`; required if `settings.privacy` is set, and only
            then.

    Raises:
        ValueError: if a private round has no plan, a round that is not private has one, or a private round has Ditto.
        TrainingDivergedError: if training diverges; the model must not be used then.
    """
    stamp = settings.model_dump_json()
    if (private is not None) != (settings.privacy is not None) or (private is not None and ditto is not None):
        raise ValueError("a private round requires a plan and trains no Ditto model; any other round has no plan")
    outcome, tensors = _train(model, images, settings, scope, before, stamp, penalties, head, private, prefix="")
    if ditto is not None:
        pull, start = ditto
        held = before.tensors if before is not None and any(n.startswith(DITTO) for n in before.tensors) else None
        restore_model(model, start if held is None else held, "model" if held is None else f"{DITTO}/model")
        own_scope = RoundScope(derive_seed(scope.seed, DITTO), scope.site, scope.round, scope.rounds)
        try:
            _, personal = _train(
                model, images, settings, own_scope, before, stamp, [pull], None, None, prefix=f"{DITTO}/"
            )
        except TrainingDivergedError as diverged:
            _log.warning("the Ditto model of %s remains unchanged in round %d: %s", scope.site, scope.round, diverged)
            personal = {name: tensor for name, tensor in (held or {}).items() if name.startswith(f"{DITTO}/")}
        restore_model(model, tensors)
        tensors |= personal
    trained = 1 if before is None else before.trained + 1
    return outcome, SiteState(scope.round, trained, tensors, stamp)


def noop_local_round(
    model: TunedViT, settings: TrainingSettings, round_number: int, *, before: SiteState | None
) -> SiteState:
    """Return the state after a round without training: the current model, and everything else from the state before."""
    held = {} if before is None else before.tensors
    trained = 0 if before is None else before.trained
    tensors = {**held, **capture_model(model)}
    return SiteState(round_number, trained, tensors, settings.model_dump_json() if before is None else before.settings)


def _train(
    model: TunedViT,
    images: CachedDataset,
    settings: TrainingSettings,
    scope: RoundScope,
    before: SiteState | None,
    stamp: str,
    penalties: Sequence[Penalty],
    head: HeadFit | None,
    private: GaussianSteps | None,
    *,
    prefix: str,
) -> tuple[TrainingOutcome, dict[str, npt.NDArray[Any]]]:
    optimizer: torch.optim.Optimizer = build_optimizer(model, settings)
    if before is not None and before.settings == stamp and settings.optimizer_state == "keep":
        restore_optimizer(optimizer, before.tensors, f"{prefix}optimizer")
    if private is None:
        outcome = train_round(model, optimizer, images, settings, scope, penalties=penalties, head=head)
    else:
        outcome = train_private_round(model, optimizer, images, settings, scope, private, penalties=penalties)
    moments = capture_optimizer(optimizer, f"{prefix}optimizer") if settings.optimizer_state == "keep" else {}
    return outcome, {**capture_model(model, f"{prefix}model"), **moments}
