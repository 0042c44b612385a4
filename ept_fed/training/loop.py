"""The local training loop of one site between two messages."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ept_fed.config.experiment import TrainingSettings
from ept_fed.data.datasets.prepare import CachedDataset
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.seeds import derive_seed, numpy_generator
from ept_fed.training.lda_head import FeaturesDivergedError, HeadFit
from ept_fed.training.losses import LOSSES
from ept_fed.training.optimizer import moves_method, set_learning_rates
from ept_fed.training.precision import use_bfloat16
from ept_fed.training.sampling import draw_order, halve
from ept_fed.training.schedule import schedule_factor

__all__ = [
    "RoundScope",
    "TrainingDivergedError",
    "TrainingOutcome",
    "freeze_beside",
    "train_round",
]


class TrainingDivergedError(RuntimeError):
    """The loss, features or parameters are not finite; the site keeps its state from before the round."""


@dataclass(frozen=True)
class TrainingOutcome:
    """The result of a training round: mean loss per image, and number of optimiser steps."""

    loss: float
    steps: int


@dataclass(frozen=True)
class RoundScope:
    """The seed, site and position of a round, which determine its random choices and learning rates."""

    seed: int
    site: str
    round: int
    rounds: int


def train_round(
    model: TunedViT,
    optimizer: torch.optim.Optimizer,
    images: CachedDataset,
    settings: TrainingSettings,
    scope: RoundScope,
    *,
    penalties: Sequence[Callable[[], Tensor]] = (),
    head: HeadFit | None = None,
) -> TrainingOutcome:
    """Train the method's tensors and the head for one round in place.

    An LDA head is not trained. It is computed from one half of the images, and the other half trains the rest (see
    `ept_fed.training.lda_head`). A fixed head stays frozen as drawn from the run's seed. It is the same at every site,
    so the prompts of all sites learn for one head that is never sent (FedBABU, Oh et al. 2022). `head_first_epochs`
    gives FedRep's order (Collins et al. 2021): first the head trains and everything else is frozen, then everything
    else trains and the head is frozen.

    Args:
        model: trained in place, on its own device.
        optimizer: from `build_optimizer`; keeps its momentum across rounds.
        images: the site's training images.
        settings: epochs, batch size, learning rates, schedule.
        scope: determines the order, the augmentation and the position of the round in the schedule.
        penalties: terms of `ept_fed.training.penalties`, added to the loss of every batch.
        head: the way to compute an LDA head; required if `settings.head` is "lda", otherwise None.

    Returns:
        mean training loss per image over the round, without the penalties, and the steps taken.

    Raises:
        TrainingDivergedError: if the loss, or a parameter after the last step, is not finite.
    """
    if (head is not None) != (settings.head == "lda"):
        raise ValueError(f"training.head = '{settings.head}' with head = {head}: pass a HeadFit exactly for head 'lda'")
    total, seen, taken = 0.0, 0, 0
    for epoch in range(settings.head_first_epochs + settings.epochs):
        parts = _plan_epoch(images, settings, scope, epoch, crossed=head is not None)
        steps = sum(math.ceil(len(part.order) / settings.batch_size) for part in parts)
        step = 0
        for part in parts:
            if head is not None:
                _compute_head(head, model, images, part.known)
            model.train()
            seed = derive_seed(scope.seed, scope.site, scope.round, epoch, part.augmentation)
            with freeze_beside(model, _part(model, settings, epoch)):
                for batch, labels in images.batches(settings.batch_size, order=part.order, augment_seed=seed):
                    _set_rates(optimizer, settings, scope, epoch + step / steps)
                    total += len(labels) * _take_step(model, optimizer, batch, labels, images.task, settings, penalties)
                    seen += len(labels)
                    step += 1
        taken += steps
    if not all(torch.isfinite(p).all() for group in optimizer.param_groups for p in group["params"]):
        raise TrainingDivergedError(
            f"a parameter after the last step of round {scope.round} is not finite; lower the learning rates"
        )
    return TrainingOutcome(total / seen, taken)


def _set_rates(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, scope: RoundScope, epochs_done: float
) -> None:
    """Set the learning rates for a step after `epochs_done` epochs of the round."""
    epochs = settings.head_first_epochs + settings.epochs
    progress = (scope.round - 1 + epochs_done / epochs) / scope.rounds
    set_learning_rates(optimizer, schedule_factor(settings.schedule, progress))


def _take_step(
    model: TunedViT,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    labels: Tensor,
    task: str,
    settings: TrainingSettings,
    penalties: Sequence[Callable[[], Tensor]],
) -> float:
    """Take one optimiser step and return the batch's mean loss, without the penalties."""
    device = model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16(settings.precision, device)):
        logits = model(batch.to(device))
    loss = LOSSES[task](logits.float(), labels.to(device))
    if not np.isfinite(value := loss.item()):
        raise TrainingDivergedError(f"the loss is {value}; lower the learning rates")
    optimizer.zero_grad(set_to_none=True)
    torch.stack([loss, *(penalty() for penalty in penalties)]).sum().backward()
    optimizer.step()
    return float(value)


def _compute_head(head: HeadFit, model: TunedViT, images: CachedDataset, known: Sequence[int] | None) -> None:
    try:
        head.apply(model, images, known)
    except FeaturesDivergedError as diverged:
        raise TrainingDivergedError(str(diverged)) from diverged


@dataclass(frozen=True)
class _EpochPart:
    """A part of an epoch: the images from which the head is computed (None: it is not), and those that train."""

    known: Sequence[int] | None
    order: Sequence[int]
    augmentation: str


def _plan_epoch(
    images: CachedDataset, settings: TrainingSettings, scope: RoundScope, epoch: int, *, crossed: bool
) -> list[_EpochPart]:
    """Return one pass over the images: one epoch part, or, if crossed, two with the halves swapped."""
    labels = images.labels.numpy()
    rng = numpy_generator(scope.seed, scope.site, scope.round, epoch, "order")
    order = draw_order(labels if settings.class_balanced else None, len(images), rng).tolist()
    if not crossed:
        return [_EpochPart(None, order, "augmentation")]
    first, second = halve(labels, numpy_generator(scope.seed, scope.site, scope.round, epoch, "halves"))
    return _cross_over(order, first.tolist(), second.tolist())


def _cross_over(order: Sequence[int], first: Sequence[int], second: Sequence[int]) -> list[_EpochPart]:
    """Return two epoch parts that swap the halves, each in the order of the epoch; an image may be in both halves."""
    parts = []
    for number, (known, held) in enumerate(((first, second), (second, first))):
        chosen = set(held)
        parts.append(_EpochPart(known, [index for index in order if index in chosen], f"augmentation {number}"))
    return [part for part in parts if part.known and part.order]


def _part(model: TunedViT, settings: TrainingSettings, epoch: int) -> str:
    if settings.head != "trained":
        return "prompts"
    if not moves_method(model, settings):
        # Only the head has a learning rate; without gradients for the rest, the backbone needs no backward pass.
        return "head"
    if not settings.head_first_epochs:
        return "all"
    return "head" if epoch < settings.head_first_epochs else "prompts"


@contextmanager
def freeze_beside(model: TunedViT, part: str) -> Iterator[None]:
    """Freeze all tensors outside a part: "head", "prompts" (all of the method's own tensors), or "all"."""
    head = set(model.head.parameters())
    frozen = [p for p in model.parameters() if p.requires_grad and part != "all" and (p in head) != (part == "head")]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
