"""The local loop of a site that trains with differential privacy: DP-SGD (Abadi et al. 2016) on sinks, tokens and head.

In each step every image is drawn independently. The gradients of the drawn images are clipped in L2 over all tensors
together and summed, and noise is added to the sum. Any optimiser can use the result. The unit of protection is one
training image; see docs/differential-privacy.md.

Noise is added to the sum in terms of sinks, not of prompt columns. Folding is 1-Lipschitz, so nothing is lost. The
later steps (the chain rule through the columns, momentum, weight decay, penalties of the strategy) read no image. The
draw of the images, their augmentation and the noise come from the system's cryptographic random source, so a private
round cannot be repeated with the same result. Augmentation from a seed that the server has would break the guarantee:
one additional image would move all later images of its batch to other positions in the random sequence.

Not protected are the number of images of the site, which the sampling rate and its messages show, and the duration of
a step.
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
from ept_fed.models.prompted_vit import PromptedViT
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.privacy.dp.accountant import GaussianSteps
from ept_fed.privacy.dp.noise import Entropy, draw_normal, draw_poisson_sample
from ept_fed.training.image_gradients import HEAD, SINKS, TOKENS, find_image_gradients, lay_down_gradients
from ept_fed.training.loop import RoundScope, TrainingDivergedError, TrainingOutcome, freeze_beside
from ept_fed.training.losses import IMAGE_LOSSES
from ept_fed.training.optimizer import set_learning_rates
from ept_fed.training.precision import use_bfloat16
from ept_fed.training.schedule import schedule_factor

__all__ = ["add_noise", "train_private_round"]

_log = logging.getLogger(__name__)


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
    """Train sinks, tokens and the head (unless it is fixed) for one private round in place.

    Args:
        model: of method ept, with prompts that have a fold; on its own device.
        optimizer: from `build_optimizer`; keeps its momentum across rounds.
        images: the site's training images, at least one.
        settings: with `privacy`; epochs, batch size, learning rates and schedule are used as without privacy.
        scope: gives the position of the round in the schedule; its seed is not used.
        plan: the accounted noise and steps, from `client.site.privacy_plan`.
        penalties: terms of `ept_fed.training.penalties`; they read no image, so they are added after the noise.
        entropy: source of random bytes; only tests replace the system's source.

    Returns:
        the steps taken, and NaN as the loss. The loss on training images has no noise, so it must not leave the site.

    Raises:
        InputRefusedError: for a model or settings without per-image gradients.
        TrainingDivergedError: if a parameter after the last step is not finite.
    """
    privacy = settings.privacy
    if privacy is None or not isinstance(model, PromptedViT):
        fix = "cannot train here; training with differential privacy requires training.privacy and method ept"
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
            "round %d left out %d per-image gradients that were not finite; this number stays at the site",
            scope.round,
            left_out,
        )
    if not all(torch.isfinite(p).all() for group in optimizer.param_groups for p in group["params"]):
        raise TrainingDivergedError(
            f"a parameter after the last step of round {scope.round} is not finite; lower the learning rates"
        )
    return TrainingOutcome(math.nan, plan.steps)


def add_noise(sums: Mapping[str, Tensor], deviation: float, *, entropy: Entropy = os.urandom) -> dict[str, Tensor]:
    """Return float64 sums plus independent normal noise of this standard deviation per element, on the same devices."""
    noisy = {}
    for name, tensor in sums.items():
        drawn = torch.from_numpy(draw_normal(tensor.numel(), entropy=entropy)).reshape(tensor.shape)
        noisy[name] = tensor + deviation * drawn.to(tensor.device)
    return noisy


def _sum_gradients(
    model: PromptedViT, images: CachedDataset, drawn: Sequence[int], settings: TrainingSettings, clip: float
) -> tuple[dict[str, Tensor], int]:
    """Return the sum of clipped gradients of the drawn images (zeros if none), and the number of images left out."""
    total, left_out = _zero_sums(model), 0
    bfloat16 = use_bfloat16(settings.precision, model.device)
    # A Poisson sample has no maximum size; parts of at most twice its mean size bound the memory.
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
