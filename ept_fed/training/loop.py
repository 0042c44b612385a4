"""The local loop: what one site does with its own images between two messages."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ept_fed.config import TrainingSettings
from ept_fed.data.datasets import CachedDataset
from ept_fed.models.method import TunedViT
from ept_fed.seeds import derive_seed, numpy_generator
from ept_fed.training.fitted_head import FeaturesDivergedError, HeadFit
from ept_fed.training.losses import LOSSES
from ept_fed.training.optimizer import set_learning_rates
from ept_fed.training.sampling import draw_order, halve
from ept_fed.training.schedule import schedule_factor

__all__ = ["RoundScope", "TrainingDivergedError", "TrainingOutcome", "train_round", "use_bfloat16"]


class TrainingDivergedError(RuntimeError):
    """Loss or features stopped being numbers; the site keeps what it had before the round."""


@dataclass(frozen=True)
class TrainingOutcome:
    """What a round of training came to: mean loss per image, and optimiser steps."""

    loss: float
    steps: int


@dataclass(frozen=True)
class RoundScope:
    """Where a round stands: everything its random choices and its learning rate depend on."""

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

    A discriminant's head is not trained but computed from one half of the images, while the other half trains the rest
    (see `ept_fed.training.fitted_head`). With `head_first_epochs`, FedRep's order (Collins et al.
    2021): first the head with everything else held still, then that with the head held still.

    Args:
        model: trained in place, on its own device.
        optimizer: from `build_optimizer`; keeps its momentum across rounds.
        images: the site's training images.
        settings: epochs, batch size, learning rates, schedule.
        scope: seeds the order and the augmentation, and places the round on the schedule.
        penalties: terms of `ept_fed.training.penalties`, added to the loss of every batch.
        head: how a discriminant's head is computed; needed for `settings.head` "discriminant", and only then.

    Returns:
        mean training loss per image over the round, without the penalties, and the steps taken.

    Raises:
        TrainingDivergedError: if the loss, or a parameter after the last step, is not finite.
    """
    device = model.device
    loss_of = LOSSES[images.task]
    if (head is not None) != (settings.head == "discriminant"):
        raise ValueError(
            f"training.head = '{settings.head}' with head = {head}: give a HeadFit for a discriminant only"
        )
    epochs = settings.head_first_epochs + settings.epochs
    balanced = images.labels.numpy() if settings.class_balanced else None
    total, seen, taken = 0.0, 0, 0
    for epoch in range(epochs):
        rng = numpy_generator(scope.seed, scope.site, scope.round, epoch, "order")
        order = draw_order(balanced, len(images), rng).tolist()
        lessons = [_Lesson(None, order, "augmentation")]
        if head is not None:
            halves = halve(images.labels.numpy(), numpy_generator(scope.seed, scope.site, scope.round, epoch, "halves"))
            lessons = _cross_over(order, halves[0].tolist(), halves[1].tolist())
        steps = sum(math.ceil(len(lesson.order) / settings.batch_size) for lesson in lessons)
        step = 0
        for lesson in lessons:
            if head is not None:
                _compute_head(head, model, images, lesson.known)
            model.train()
            augment_seed = derive_seed(scope.seed, scope.site, scope.round, epoch, lesson.augmentation)
            with _trained_alone(model, _part(settings, epoch)):
                for batch, labels in images.batches(settings.batch_size, order=lesson.order, augment_seed=augment_seed):
                    progress = (scope.round - 1 + (epoch + step / steps) / epochs) / scope.rounds
                    set_learning_rates(optimizer, schedule_factor(settings.schedule, progress))
                    with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16(settings.precision, device)):
                        logits = model(batch.to(device))
                    loss = loss_of(logits.float(), labels.to(device))
                    if not np.isfinite(value := loss.item()):
                        raise TrainingDivergedError(f"loss is {value} in round {scope.round}; lower the learning rates")
                    optimizer.zero_grad(set_to_none=True)
                    torch.stack([loss, *(penalty() for penalty in penalties)]).sum().backward()
                    optimizer.step()
                    total += value * len(labels)
                    seen += len(labels)
                    step += 1
        taken += steps
    if not all(torch.isfinite(p).all() for group in optimizer.param_groups for p in group["params"]):
        raise TrainingDivergedError(f"the last step of round {scope.round} left the numbers; lower the learning rates")
    return TrainingOutcome(total / seen, taken)


def _compute_head(head: HeadFit, model: TunedViT, images: CachedDataset, known: Sequence[int] | None) -> None:
    try:
        head.apply(model, images, known)
    except FeaturesDivergedError as diverged:
        raise TrainingDivergedError(str(diverged)) from diverged


@dataclass(frozen=True)
class _Lesson:
    """Part of an epoch: the images that the head is computed from (None: it is not), and those that train."""

    known: Sequence[int] | None
    order: Sequence[int]
    augmentation: str


def _cross_over(order: Sequence[int], first: Sequence[int], second: Sequence[int]) -> list[_Lesson]:
    """Return both ways round, each image in the epoch's order; a class with one image is in both halves."""
    lessons = []
    for number, (known, held) in enumerate(((first, second), (second, first))):
        chosen = set(held)
        lessons.append(_Lesson(known, [index for index in order if index in chosen], f"augmentation {number}"))
    return [lesson for lesson in lessons if lesson.known and lesson.order]


def _part(settings: TrainingSettings, epoch: int) -> str:
    if settings.head == "discriminant":
        return "prompts"
    if not settings.head_first_epochs:
        return "all"
    return "head" if epoch < settings.head_first_epochs else "prompts"


@contextmanager
def _trained_alone(model: TunedViT, part: str) -> Iterator[None]:
    """Hold still what is not in the part: "head", "prompts" (all of the method's own tensors), or "all"."""
    head = set(model.head.parameters())
    still = [p for p in model.parameters() if p.requires_grad and part != "all" and (p in head) != (part == "head")]
    for parameter in still:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in still:
            parameter.requires_grad_(True)


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Tell whether to compute in bfloat16: where asked, or under 'auto' on a CUDA device with bfloat16 hardware."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"
