"""Positive controls: cases in which a working attack must succeed, so that a negative result elsewhere has a meaning.

Membership: a head that was fitted only to the members until it memorised them, and the bare gradient of the batch of
eight that contains an image. Inversion: the same search on the gradient of a linear model of the pixels, and on that of
the ViT's patch embedding and positions, from which the image can also be solved for. A site sends none of these.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import skip_init

from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.evaluation.metrics import Array
from ept_fed.models.prompted_vit import PromptedViT
from ept_fed.privacy.attacks.batch_gradients import batch_gradients, differentiable_twice, flatten
from ept_fed.privacy.attacks.membership import measure_advantage, score_batches, score_loss_drop
from ept_fed.privacy.attacks.patch_inversion import solve_patches
from ept_fed.privacy.attacks.views import View
from ept_fed.seeds import derive_seed, numpy_generator
from ept_fed.training.losses import LOSSES
from simulations.attacks.inversion import Kind, Target, score_images, search_images
from simulations.attacks.membership import (
    OWN_PROMPTS,
    Candidates,
    candidate_gradients,
    measure_losses,
    parameters_of,
)
from simulations.attacks.record import AttackRow
from simulations.attacks.replay import PlayedRound

__all__ = ["control_inversion", "control_membership"]

_PARTS = "known membership", "known inversion"  # of `PARTS`
_FIT_STEPS = 500
_AT_ONCE = 16
_BATCH = 8
_PARTITIONS = 8
_PATCHES, _POSITIONS = "vit.patch_embed.proj.weight", "vit.pos_embed"


def control_membership(
    model: PromptedViT, played: PlayedRound, candidates: Candidates, view: View, *, seed: int
) -> list[AttackRow]:
    """Return a row for each score, in a case where the members leave the strongest trace.

    Args:
        model: used for the computation; its own tensors do not change.
        played: the round; its tensors before training are used.
        candidates: members and non-members.
        view: the view that the run sends.
        seed: of batches and resamples.
    """
    state = {name: tensor.to(model.device) for name, tensor in played.before.items()}
    gradients = candidate_gradients(model, state, candidates, [view])[view.name]
    scores = {
        "AUC, loss drop": ("a head fitted only to the members", _fit_head(model, state, candidates)),
        "AUC, cosine": (
            f"{view.name}: bare gradient of a batch of {_BATCH}",
            _score_partitions(gradients, candidates.member, numpy_generator(seed, played.site, "batches")),
        ),
    }
    rows = []
    for measure, (payload, values) in scores.items():
        rng = numpy_generator(seed, played.site, played.round, "membership")
        found = measure_advantage(values, candidates.member, candidates.groups, rng)
        rows.append(
            AttackRow(
                _PARTS[0], played.site, played.round, OWN_PROMPTS, payload, False, measure, 0, len(values),
                found.value, found.low, found.high,
            )
        )  # fmt: skip
    return rows


def control_inversion(
    model: PromptedViT,
    played: PlayedRound,
    target: Target,
    spec: InputSpec,
    *,
    steps: int,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> list[AttackRow]:
    """Return the rows of a search that must succeed, of one that should, and of the exact solution of the second.

    Args:
        model: used for the computation; its own tensors do not change.
        played: the round; its tensors before training are used.
        target: batches of one image.
        spec: input specification of the images.
        steps: number of steps of each search.
        seed: of the linear model and the starting points.
        on_step: called after every step.
    """
    loss, device = LOSSES[target.task], model.device
    images, labels = target.images.to(device), target.labels.to(device)
    linear, drawn = _draw_linear(images, model.head.out_features, seed)
    state = parameters_of({name: tensor.to(device) for name, tensor in played.before.items()})
    frozen = dict(model.named_parameters())
    state |= {name: frozen[name].detach() for name in (_PATCHES, _POSITIONS)}

    def of_linear(guess: Tensor) -> Tensor:
        return flatten(batch_gradients(linear, drawn, guess, labels, loss), 1)

    def of_patches(guess: Tensor) -> Tensor:
        found = batch_gradients(model, state, guess, labels, loss)
        return flatten({name: found[name] for name in (_PATCHES, _POSITIONS)}, 1)

    searched = {
        f"a linear model of the pixels, {steps} steps": of_linear,
        f"patch embedding + positions, {steps} steps": of_patches,
    }
    model.eval()
    rows = []
    with differentiable_twice(model):
        for payload, gradients_of in searched.items():
            observed = gradients_of(images).detach()
            found = search_images(gradients_of, observed, target, spec, steps=steps, seed=seed, on_step=on_step)
            rows += score_images(found, target, spec, Kind(_PARTS[1], played.site, played.round, payload), seed)[0]
        bare = batch_gradients(model, state, images, labels, loss)
    count = images.shape[-1] * images.shape[-2] // frozen[_PATCHES].shape[-1] ** 2
    solved = [
        solve_patches(weight.cpu().numpy(), positions[0, -count:].cpu().numpy())
        for weight, positions in zip(bare[_PATCHES].detach(), bare[_POSITIONS].detach(), strict=True)
    ]
    exact = torch.from_numpy(np.stack(solved)[:, None]).float()
    kind = Kind(_PARTS[1], played.site, played.round, "patch embedding + positions, solved")
    return rows + score_images(exact, target, spec, kind, seed)[0]


def _score_partitions(gradients: Array, member: Array, rng: np.random.Generator) -> Array:
    """Return (n, partitions) scores over random partitions into batches, so that the interval covers this chance."""
    return np.stack([score_batches(gradients, member, _BATCH, rng) for _ in range(_PARTITIONS)], axis=1)


def _fit_head(model: PromptedViT, state: dict[str, Tensor], candidates: Candidates) -> Array:
    """Return (n,) decreases of the loss from the round's head to a head that was fitted only to the members."""
    features, labels = _compute_features(model, state, candidates)
    member = torch.from_numpy(candidates.member)
    weight = torch.zeros_like(state["head.weight"], device="cpu", requires_grad=True)
    bias = torch.zeros_like(state["head.bias"], device="cpu", requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_FIT_STEPS, line_search_fn="strong_wolfe")
    loss = LOSSES[candidates.images.task]

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        cost = loss(F.linear(features[member], weight, bias), labels[member])
        cost.backward()
        return cost

    optimizer.step(evaluate)
    with torch.no_grad():
        before = F.linear(features, state["head.weight"].cpu(), state["head.bias"].cpu())
        after = F.linear(features, weight, bias)
    return score_loss_drop(*(measure_losses(logits, labels, candidates.images.task) for logits in (before, after)))


class _Features(nn.Module):
    """A module that returns the features before the head of a model."""

    def __init__(self, model: PromptedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_features(images)


@torch.no_grad()
def _compute_features(model: PromptedViT, state: dict[str, Tensor], candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Return features (n, D) of the candidates with the round's prompts, and their labels."""
    values = {f"model.{name}": tensor for name, tensor in parameters_of(state).items()}
    model.eval()
    parts = [
        (functional_call(_Features(model), values, (images.to(model.device),)).float().cpu(), labels)
        for images, labels in candidates.images.batches(_AT_ONCE)
    ]
    features, labels = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(labels)


def _draw_linear(images: Tensor, classes: int, seed: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a linear model of the pixels and its weights, scaled to keep logits near one, on the images' device."""
    pixels = images[0, 0].numel()
    model = nn.Sequential(nn.Flatten(), skip_init(nn.Linear, pixels, classes, device=images.device))
    generator = torch.Generator().manual_seed(derive_seed(seed, "linear model"))
    drawn = {
        # Drawn on the CPU, so that the numbers do not depend on the device.
        name: (torch.randn(tensor.shape, generator=generator) / pixels**0.5).to(images.device)
        for name, tensor in model.named_parameters()
    }
    return model, drawn
