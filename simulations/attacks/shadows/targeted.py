"""A malicious server that looks for one image: prompts that make it badly classified, and a site that may correct that.

The server ascends on the loss of the image and descends on that of others (the active attack of Nasr et al. 2019, arXiv
1812.00910). A site that trains on the image corrects the server; any other site has no reason to. With the gate on, the
prompts go as far in this direction as `incoming.prompt_change` allows. In a run that shares a head, they include it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from client.site.state_store import capture_model, restore_model
from ept_fed.evaluation.metrics import Array
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.seeds import numpy_generator
from ept_fed.training.loop import TrainingDivergedError
from ept_fed.training.payload import export_payload, import_payload
from simulations.attacks.crafted_prompts import shorten_step
from simulations.attacks.replay import Replay
from simulations.attacks.shadows.train import ShadowTrainer

__all__ = ["Targeted", "choose_targets", "seek_images"]

# One image in so many candidates is sought, as each needs a round of training.
_STEPS, _RATE = 12, 0.02
_OTHERS = 7


@dataclass(frozen=True)
class Targeted:
    """How much a site corrected the server, for each sought image.

    Attributes:
        places: (t,) the images among the candidates.
        corrections: by "gate on" and "gate off", (t,) the margin under the site's update minus that under the server's
            prompts.
    """

    places: Array
    corrections: dict[str, Array]


def choose_targets(trainer: ShadowTrainer, site: int, most: int) -> Array:
    """Return the places of equally many members and others among the candidates of a site, at most `most`."""
    candidates, rng = trainer.pool.candidates, numpy_generator(trainer.seed, "targets", site)
    chosen = []
    for member in (True, False):
        places = np.flatnonzero((candidates.site == site) & (candidates.member == member))
        chosen.append(rng.permutation(places)[: most // 2])
    return np.sort(np.concatenate(chosen))


def seek_images(
    trainer: ShadowTrainer,
    replay: Replay,
    folder_prompts: Callable[[int], Vector],
    places: Sequence[int],
    round_number: int,
    bound: float,
) -> Targeted:
    """Return how much the site corrects prompts that were crafted for each image, in one round of the run.

    Args:
        trainer: of the attacked run.
        replay: of the site; every earlier round must have been played.
        folder_prompts: returns the run's prompts after a round.
        places: the sought images among the candidates.
        round_number: the round in which the server sends crafted prompts.
        bound: the policy's `incoming.prompt_change`.
    """
    plan = trainer.federation.plan()
    latest = folder_prompts(max(round_number - 2, 0))
    honest = folder_prompts(round_number - 1)
    found: dict[str, list[float]] = {"gate on": [], "gate off": []}
    for place in places:
        crafted = _craft(trainer, plan.layout, honest, int(place))
        for name, payload in (("gate on", shorten_step(latest, crafted, plan.layout, bound)), ("gate off", crafted)):
            (before,) = trainer.margins(plan, payload, only=np.array([place]))
            try:
                (after,) = trainer.margins(plan, replay.play(round_number, payload).payload, only=np.array([place]))
            except TrainingDivergedError:
                # The site sends nothing, which tells the server nothing of this image.
                after = before
            found[name].append(after - before)
    return Targeted(np.array(places), {name: np.array(values) for name, values in found.items()})


def _craft(trainer: ShadowTrainer, layout: PayloadLayout, payload: Vector, place: int) -> Vector:
    """Return prompts with a high loss for one candidate and a low one for others of its site."""
    model, start = trainer.model, capture_model(trainer.model)
    import_payload(model, payload, layout)
    names = {name for name, _ in layout.shapes}
    sent = [
        tensor
        for name, tensor in model.named_parameters()
        if tensor.requires_grad and (name in names or not name.startswith("head."))
    ]
    optimizer = torch.optim.Adam(sent, lr=_RATE)
    rng = numpy_generator(trainer.seed, "crafted", place)
    others = np.setdiff1d(np.flatnonzero(trainer.pool.candidates.site == trainer.pool.candidates.site[place]), [place])
    for _ in range(_STEPS):
        drawn = rng.choice(others, min(_OTHERS, len(others)), replace=False)
        images, labels = trainer.batch([place, *drawn.tolist()])
        losses = _losses(model, images, labels)
        optimizer.zero_grad()
        (losses[1:].mean() - losses[0]).backward()
        optimizer.step()
    crafted = export_payload(model, layout)
    restore_model(model, start)
    return crafted


def _losses(model: TunedViT, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = model(images.to(model.device)).float()
    labels = labels.to(model.device)
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
