"""Membership inference on the update of one site in one round, for every view of the update."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ept_fed.data.datasets.cache import CachedDataset
from ept_fed.evaluation.metrics import Array
from ept_fed.models.prompted_vit import PromptedViT
from ept_fed.models.prompts import unfold
from ept_fed.privacy.attacks.batch_gradients import batch_gradients, differentiable_twice, flatten
from ept_fed.privacy.attacks.membership import match_classes, measure_advantage, score_alignment, score_loss_drop
from ept_fed.privacy.attacks.views import View, add_noise
from ept_fed.seeds import derive_seed, numpy_generator
from ept_fed.training.losses import LOSSES
from simulations.attacks.record import AttackRow
from simulations.attacks.replay import PARAMETERS, PlayedRound
from simulations.engine.virtual_sites import VirtualFederation

__all__ = [
    "OWN_PROMPTS",
    "Candidates",
    "attack_membership",
    "candidate_gradients",
    "choose_candidates",
    "measure_losses",
    "parameters_of",
]

OWN_PROMPTS = "the run's own"
_AT_ONCE = 16


@dataclass(frozen=True)
class Candidates:
    """Images of one site, some of which it trained on.

    Attributes:
        images: the n candidates, as they are kept for training, whatever their split.
        member: (n,) bool, true for the training images.
        groups: (n,) patients.
    """

    images: CachedDataset
    member: Array
    groups: tuple[str, ...]


def choose_candidates(
    federation: VirtualFederation, site: str, seed: int, *, known: Collection[str] = ()
) -> Candidates:
    """Draw equally many training and other images of the site, equally many of each class for single-label tasks.

    Images of the patients in `known` are left out, because the attacker has them.
    """
    data = federation.data.sites[site]
    records, trained = [record for part in data.parts() for record in part.records], len(data.train)
    single = data.task == "single_label"
    labels = np.array([record.labels[0] if single else 0 for record in records])
    unknown = np.array(
        [index for index in range(trained, len(records)) if records[index].group not in known], dtype=int
    )
    members, others = match_classes(labels[:trained], labels[unknown], numpy_generator(seed, data.name, "candidates"))
    chosen = [*members.tolist(), *unknown[others].tolist()]
    kept = [records[index] for index in chosen]
    images = federation.load_alike({site: kept})[site]
    return Candidates(images, np.arange(len(chosen)) < len(members), tuple(record.group for record in kept))


def attack_membership(
    model: PromptedViT,
    played: PlayedRound,
    candidates: Candidates,
    views: Sequence[View],
    *,
    seed: int,
    part: str = "membership",
    prompts: str = OWN_PROMPTS,
    sent: tuple[str, ...] = (),
    on_image: Callable[[int], None] = lambda _count: None,
) -> list[AttackRow]:
    """Return two rows per view: the AUC by the decrease of the loss, and by the cosine with the gradient.

    Args:
        model: used for the computation; its own tensors do not change.
        played: the round.
        candidates: images of this site, or of another site for a control.
        views: the parts of the update that the attacker may see.
        seed: of noise and resamples.
        part: field of the rows.
        prompts: field of the rows.
        sent: tensors that the run sends.
        on_image: called with the number of images that were just processed.
    """
    before = _on(model, played.before)
    losses_before = _losses(model, before, candidates)
    gradients = candidate_gradients(model, before, candidates, views, on_image)
    rows = []
    for view in views:
        seen_before, seen_after = view.of_state(played.before), view.of_state(played.after)
        generator = torch.Generator().manual_seed(derive_seed(seed, played.site, played.round, view.name, "noise"))
        update = add_noise(
            {name: seen_after[name] - tensor for name, tensor in seen_before.items()}, view.noise, generator
        )
        losses_after = _losses(model, _on(model, _move(played.before, update)), candidates)
        scores = {
            "AUC, loss drop": score_loss_drop(losses_before, losses_after),
            "AUC, cosine": score_alignment(gradients[view.name], flatten(update).double().numpy()),
        }
        for measure, values in scores.items():
            rng = numpy_generator(seed, played.site, played.round, "membership")
            found = measure_advantage(values, candidates.member, candidates.groups, rng)
            rows.append(
                AttackRow(
                    part, played.site, played.round, prompts, view.name, view.tensors == sent and not view.noise,
                    measure, 0, len(values), found.value, found.low, found.high,
                )
            )  # fmt: skip
    return rows


def parameters_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return trained tensors under the names of the model's parameters."""
    return {PARAMETERS[name]: tensor for name, tensor in state.items()}


def _move(state: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state plus an update; updated sinks are unfolded into the state's own columns."""
    moved = dict(state)
    for name, change in update.items():
        if name == "sinks":
            prompts = state["prompts"]
            moved["prompts"] = unfold(prompts, torch.logsumexp(prompts, -1) + change)
        else:
            moved[name] = state[name] + change
    return moved


@torch.no_grad()
def _losses(model: PromptedViT, state: Mapping[str, Tensor], candidates: Candidates) -> Array:
    """Return (n,) losses of the candidates with the given trained tensors."""
    model.eval()
    values = []
    for images, labels in candidates.images.batches(_AT_ONCE):
        logits = functional_call(model, parameters_of(state), (images.to(model.device),)).float().cpu()
        values.append(measure_losses(logits, labels, candidates.images.task))
    return np.concatenate(values)


def measure_losses(logits: Tensor, labels: Tensor, task: str) -> Array:
    """Return the (n,) separate losses of n images from logits (n, C)."""
    if task == "single_label":
        losses = F.cross_entropy(logits, labels, reduction="none")
    else:
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    return np.asarray(losses.double().numpy())


def candidate_gradients(
    model: PromptedViT,
    state: Mapping[str, Tensor],
    candidates: Candidates,
    views: Sequence[View],
    on_image: Callable[[int], None] = lambda _count: None,
) -> dict[str, Array]:
    """Return (n, d) gradients of each candidate's own loss, by the name of the view."""
    model.eval()
    loss, values = LOSSES[candidates.images.task], parameters_of(state)
    found: dict[str, list[Array]] = {view.name: [] for view in views}
    for images, labels in candidates.images.batches(_AT_ONCE):
        with differentiable_twice(model):
            batch, truth = images.to(model.device)[:, None], labels.to(model.device)[:, None]
            gradient = batch_gradients(model, values, batch, truth, loss)
        named = {name: gradient[parameter].cpu() for name, parameter in PARAMETERS.items() if parameter in gradient}
        for view in views:
            found[view.name].append(flatten(view.of_gradient(named), 1).double().numpy())
        on_image(len(labels))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _on(model: PromptedViT, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(model.device) for name, tensor in state.items()}
