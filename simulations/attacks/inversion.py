"""Inversion attack on the update of one site in one round, for every view of the update."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.data.datasets.prepare import SiteData, pool
from ept_fed.evaluation.bootstrap import Interval, measure, resample, summarise
from ept_fed.evaluation.image_similarity import psnr, ssim
from ept_fed.evaluation.metrics import Array
from ept_fed.models.prompted_vit import PromptedViT
from ept_fed.privacy.attacks.batch_gradients import batch_gradients, differentiable_twice, flatten
from ept_fed.privacy.attacks.inversion import align_images, match_gradients
from ept_fed.privacy.attacks.views import View, add_noise
from ept_fed.seeds import derive_seed, numpy_generator
from ept_fed.training.losses import LOSSES
from simulations.attacks.membership import OWN_PROMPTS, parameters_of
from simulations.attacks.record import AttackRow
from simulations.attacks.replay import PARAMETERS, PlayedRound

__all__ = [
    "BATCHES",
    "Kind",
    "Target",
    "attack_inversion",
    "choose_targets",
    "draw_pictures",
    "score_images",
    "search_images",
]

# Batch size and number of batches: an interval requires at least ten patients, and every further image costs time.
BATCHES = ((1, 10), (8, 1))
_MAX_AVERAGED = 200
_START_NOISE = 0.1
# Sign steps cannot move farther than rate times steps, so fewer steps require a higher rate.
_REACH, _LEAST_RATE = 4.0, 0.05


@dataclass(frozen=True)
class Target:
    """Batches of one size that the attacker has to find.

    Attributes:
        images: (G, B, 3, H, W) as the model receives them.
        labels: (G, B), or (G, B, C) for multi-label.
        groups: (G·B,) patients.
        guess: (3, H, W), mean of the site's other images.
        task: single_label or multi_label.
    """

    images: Tensor
    labels: Tensor
    groups: tuple[str, ...]
    guess: Tensor
    task: str


@dataclass(frozen=True)
class Kind:
    """The target of an attack, as in its rows: fields as in `AttackRow`."""

    part: str
    site: str
    round: int
    payload: str
    sent: bool = False


def choose_targets(data: SiteData, seed: int) -> list[Target]:
    """Draw training images for every batch size, with fewer batches if the site has too few images."""
    rest = pool((data.validation, data.test))
    few = numpy_generator(seed, data.name, "mean image").permutation(len(rest))[:_MAX_AVERAGED]
    total, count = torch.zeros(()), 0
    for images, _ in rest.batches(32, order=few.tolist()):
        total, count = total + images.sum(0), count + len(images)
    order = numpy_generator(seed, data.name, "targets").permutation(len(data.train)).tolist()
    targets = []
    for size, limit in BATCHES:
        batches = min(limit, len(order) // size)
        if not batches or not count:
            continue
        chosen = order[: batches * size]
        ((images, labels),) = data.train.batches(len(chosen), order=chosen)
        targets.append(
            Target(
                images.unflatten(0, (batches, size)),
                labels.unflatten(0, (batches, size)),
                tuple(data.train.records[index].group for index in chosen),
                total / count,
                data.task,
            )
        )
    return targets


def attack_inversion(
    model: PromptedViT,
    played: PlayedRound,
    target: Target,
    view: View,
    spec: InputSpec,
    *,
    steps: int,
    seed: int,
    sent: tuple[str, ...] = (),
    on_step: Callable[[], None] = lambda: None,
) -> tuple[list[AttackRow], Array]:
    """Return the rows of PSNR and SSIM of one view, and the reconstructed images (G·B, 3, H, W) in [0, 1].

    Args:
        model: used for the computation; its own tensors do not change.
        played: the round; the attacked update starts from the tensors before it.
        target: the images to find.
        view: the part of the update that the attacker sees.
        spec: input specification of the images.
        steps: number of steps of the search.
        seed: of the start and the noise.
        sent: tensors that the run sends.
        on_step: called after every step.
    """
    device, loss = model.device, LOSSES[target.task]
    state = {name: tensor.to(device) for name, tensor in played.before.items()}
    values, labels = parameters_of(state), target.labels.to(device)

    def gradients_of(images: Tensor) -> Tensor:
        found = batch_gradients(model, values, images, labels, loss)
        named = {name: found[parameter] for name, parameter in PARAMETERS.items() if parameter in found}
        return flatten(view.of_gradient(named), 1)

    model.eval()
    with differentiable_twice(model):
        generator = torch.Generator().manual_seed(derive_seed(seed, played.site, view.name, "noise"))
        observed = _observe(model, values, target, view, generator)
        found = search_images(gradients_of, observed, target, spec, steps=steps, seed=seed, on_step=on_step)
    kind = Kind("inversion", played.site, played.round, view.name, view.tensors == sent and not view.noise)
    return score_images(found, target, spec, kind, seed)


def search_images(
    gradients_of: Callable[[Tensor], Tensor],
    observed: Tensor,
    target: Target,
    spec: InputSpec,
    *,
    steps: int,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return the images (G, B, 3, H, W) that best explain observed gradients (G, n), in the units of the target's.

    Arguments as in `attack_inversion` and `match_gradients`; the search starts near the target's mean image.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, *target.groups, "inversion"))
    start = target.guess + _START_NOISE * torch.randn(target.images.shape, generator=generator)
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    bounds = (-mean / std).to(observed.device), ((1 - mean) / std).to(observed.device)
    return match_gradients(
        gradients_of,
        observed,
        torch.minimum(torch.maximum(start.to(observed.device), bounds[0]), bounds[1]),
        bounds,
        steps=steps,
        rate=max(_LEAST_RATE, _REACH / steps),
        on_step=on_step,
    ).cpu()


def score_images(
    found: Tensor, target: Target, spec: InputSpec, kind: Kind, seed: int
) -> tuple[list[AttackRow], Array]:
    """Return the rows of PSNR and SSIM, and the images (G·B, 3, H, W) in [0, 1] in the order of the true ones.

    Args:
        found: (G, B, 3, H, W), in the units of the target's.
        target: the images to find.
        spec: input specification of the images.
        kind: the other fields of the rows.
        seed: of the resamples.
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    true, reconstructed, guess = (
        ((images * std + mean).clamp(0, 1)).numpy() for images in (target.images, found, target.guess)
    )
    ordered = [images[align_images(images, batch)] for images, batch in zip(reconstructed, true, strict=True)]
    pictures, truth = np.concatenate(ordered), true.reshape(-1, *true.shape[2:])
    rows = []
    for name, compare in (("PSNR", psnr), ("SSIM", ssim)):
        reached = np.array([compare(one, other) for one, other in zip(truth, pictures, strict=True)])
        guessed = np.array([compare(one, guess) for one in truth])
        value, gain = (_mean(numbers, target.groups, seed) for numbers in (reached, reached - guessed))
        rows.append(
            AttackRow(
                kind.part, kind.site, kind.round, OWN_PROMPTS, kind.payload, kind.sent,
                name, target.images.shape[1], len(truth), value.value, value.low, value.high,
                gain.value, gain.low, gain.high,
            )
        )  # fmt: skip
    return rows, pictures


def draw_pictures(target: Target, found: Sequence[Array], spec: InputSpec) -> bytes:
    """Return a PNG: true images in the first row, then the mean image, then each view's reconstructions."""
    mean, std = (np.array(values)[:, None, None] for values in (spec.mean, spec.std))
    true = np.clip(target.images.flatten(0, 1).numpy() * std + mean, 0, 1)
    guess = np.broadcast_to(np.clip(target.guess.numpy() * std + mean, 0, 1), true.shape)
    strips = [np.concatenate(list(images), axis=2) for images in (true, guess, *found)]
    pixels = (np.concatenate(strips, axis=1).transpose(1, 2, 0) * 255).round().astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def _observe(
    model: PromptedViT, values: dict[str, Tensor], target: Target, view: View, generator: torch.Generator
) -> Tensor:
    """Return (G, n): the part of each batch's gradient that the view shows, including noise."""
    device = model.device
    images, labels = target.images.to(device), target.labels.to(device)
    found = batch_gradients(model, values, images, labels, LOSSES[target.task])
    named = {name: found[parameter].cpu() for name, parameter in PARAMETERS.items() if parameter in found}
    seen = view.of_gradient(named)
    batches = [
        flatten(add_noise({name: tensor[index] for name, tensor in seen.items()}, view.noise, generator))
        for index in range(len(target.images))
    ]
    return torch.stack(batches).detach().to(device)


def _mean(values: Array, groups: Sequence[str], seed: int) -> Interval:
    def metric(weights: Array) -> Array:
        return np.asarray(weights @ values / weights.sum(axis=1))

    draws = resample(metric, groups, numpy_generator(seed, "similarity"))
    return summarise(float(measure(metric, len(values))), draws, len(set(groups)))
