"""The local loop of a site that trains with differential privacy: DP-SGD (Abadi et al. 2016) on sinks, tokens and head.

In each step every image is drawn independently, the gradients of the drawn images are clipped in L2 over all tensors
together and summed, noise is added to the sum, and any optimiser goes on from there. What it protects is one training
image; see docs/differential-privacy.md.

The sum is noised as sinks, not as prompt columns: folding is 1-Lipschitz, so nothing is lost, and what follows (the
chain rule through the columns, momentum, weight decay, penalties of the strategy) reads no image. Which images are
drawn, how they are augmented, and the noise come from the system's cryptographic source, so a private round never comes
out the same twice. Augmentation from a seed that the server knows would break the guarantee: one image more moves all
later ones of its batch to another place in the seed's sequence.

Not protected: how many images the site has, which the sampling rate and its messages show; how long a step takes.
"""

import logging
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ept_fed.catalog.methods import FIXED_HEADS
from ept_fed.config.experiment import TrainingSettings
from ept_fed.data.datasets.prepare import CachedDataset
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.models.vit import PromptedViT
from ept_fed.privacy.dp.accountant import GaussianSteps, find_noise_multiplier
from ept_fed.privacy.dp.noise import Entropy, draw_normal, draw_poisson_sample
from ept_fed.training.image_gradients import HEAD, SINKS, TOKENS, find_image_gradients, lay_down_gradients
from ept_fed.training.loop import RoundScope, TrainingDivergedError, TrainingOutcome, freeze_beside
from ept_fed.training.losses import IMAGE_LOSSES
from ept_fed.training.optimizer import set_learning_rates
from ept_fed.training.precision import use_bfloat16
from ept_fed.training.schedule import schedule_factor
from ept_fed.validation.record_dp import validate_private_training

__all__ = ["add_noise", "plan_private_round", "train_private_round"]

_log = logging.getLogger(__name__)


def plan_private_round(settings: TrainingSettings, images: int, rounds: int) -> GaussianSteps:
    """Return what one round will cost on so many images, at least one, before it begins.

    An epoch has as many steps as without privacy, ceil(images / batch_size). Under `privacy.epsilon`, σ is the least
    with which `rounds` such rounds keep it.

    Raises:
        InputRefusedError: for settings that do not go with privacy, or an epsilon that no noise keeps.
    """
    privacy = settings.privacy
    problems = validate_private_training(settings)
    if privacy is None:
        problems.append(Problem("training.privacy", None, "is needed to train with privacy"))
    if problems or privacy is None:
        raise InputRefusedError(problems)
    steps = settings.epochs * math.ceil(images / settings.batch_size)
    rate = min(1.0, settings.batch_size / images)
    if privacy.noise_multiplier is not None:
        return GaussianSteps(privacy.noise_multiplier, rate, steps)
    wanted = float(privacy.epsilon or 0.0)
    try:
        noise = find_noise_multiplier(wanted, privacy.delta, sampling_rate=rate, steps=steps * rounds)
    except ValueError as error:
        raise InputRefusedError([Problem("training.privacy.epsilon", wanted, str(error))]) from error
    return GaussianSteps(noise, rate, steps)


def train_private_round(
    model: TunedViT,
    optimizer: torch.optim.Optimizer,
    images: CachedDataset,
    settings: TrainingSettings,
    scope: RoundScope,
    plan: GaussianSteps,
    *,
    penalties: Sequence[Callable[[], Tensor]] = (),
    entropy: Entropy = os.urandom,
) -> TrainingOutcome:
    """Train sinks, tokens and head, unless that is common, for one private round in place.

    Args:
        model: ept's, with prompts that fold; on its own device.
        optimizer: from `build_optimizer`; keeps its momentum across rounds.
        images: the site's training images, at least one.
        settings: with `privacy`; epochs, batch size, learning rates, schedule as without.
        scope: places the round on the schedule; its seed draws nothing here.
        plan: from `plan_private_round`: what was accounted for.
        penalties: terms of `ept_fed.training.penalties`: they read no image, so they are added behind the noise.
        entropy: random bytes; another source than the system's is for tests.

    Returns:
        the steps taken, and NaN for the loss: over training images and without noise it must not leave.

    Raises:
        InputRefusedError: for a model or settings without gradients of single images.
        TrainingDivergedError: if a parameter after the last step is not finite.
    """
    privacy = settings.privacy
    if privacy is None or not isinstance(model, PromptedViT):
        fix = "trains without privacy; private training needs training.privacy and method ept"
        raise InputRefusedError([Problem("model.method", model.method, fix)])
    model.train()
    expected = plan.sampling_rate * len(images)
    left_out = 0
    with freeze_beside(model, "prompts" if settings.head in FIXED_HEADS else "all"):
        for step in range(plan.steps):
            progress = (scope.round - 1 + step / plan.steps) / scope.rounds
            set_learning_rates(optimizer, schedule_factor(settings.schedule, progress))
            drawn = draw_poisson_sample(len(images), plan.sampling_rate, entropy=entropy)
            total, bad = _sum_gradients(model, images, drawn.tolist(), settings, privacy.clip)
            left_out += bad
            noisy = add_noise(total, plan.noise_multiplier * privacy.clip, entropy=entropy)
            optimizer.zero_grad(set_to_none=True)
            lay_down_gradients(model, {name: tensor / expected for name, tensor in noisy.items()})
            if penalties:
                torch.stack([penalty() for penalty in penalties]).sum().backward()
            optimizer.step()
    if left_out:
        _log.warning(
            "round %d left out %d gradients of single images that were not finite; this stays at the site",
            scope.round,
            left_out,
        )
    if not all(torch.isfinite(p).all() for group in optimizer.param_groups for p in group["params"]):
        raise TrainingDivergedError(f"the last step of round {scope.round} left the numbers; lower the learning rates")
    return TrainingOutcome(math.nan, plan.steps)


def add_noise(sums: Mapping[str, Tensor], deviation: float, *, entropy: Entropy = os.urandom) -> dict[str, Tensor]:
    """Return float64 sums with independent normal noise of this standard deviation on every number, same devices."""
    noisy = {}
    for name, tensor in sums.items():
        drawn = torch.from_numpy(draw_normal(tensor.numel(), entropy=entropy)).reshape(tensor.shape)
        noisy[name] = tensor + deviation * drawn.to(tensor.device)
    return noisy


def _sum_gradients(
    model: PromptedViT, images: CachedDataset, drawn: Sequence[int], settings: TrainingSettings, clip: float
) -> tuple[dict[str, Tensor], int]:
    """Return the sum of clipped gradients of the drawn images, zeros if there are none, and how many are left out."""
    total, left_out = _zero_sums(model), 0
    bfloat16 = use_bfloat16(settings.precision, model.device)
    # A Poisson sample has no largest size; twice the mean at a time bounds the memory.
    for batch, labels in images.batches(2 * settings.batch_size, order=drawn, augment_seed=secrets.randbits(63)):
        found = find_image_gradients(
            model,
            batch.to(model.device),
            labels.to(model.device),
            IMAGE_LOSSES[images.task],
            bfloat16=bfloat16,
        )
        sums, bad = found.clipped_sum(clip)
        for name, tensor in sums.items():
            total[name] += tensor
        left_out += bad
    return total, left_out


def _zero_sums(model: PromptedViT) -> dict[str, Tensor]:
    like = {SINKS: model.prompts[..., 0]}
    if model.tokens is not None:
        like[TOKENS] = model.tokens
    if model.head.weight.requires_grad:
        like |= dict(zip(HEAD, (model.head.weight, model.head.bias), strict=True))
    return {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in like.items()}
