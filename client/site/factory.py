"""Construction of sites from an experiment; used by simulations for many sites and by a worker for its own site."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from client.site.model_slot import ModelSlot
from client.site.run_settings import RunSettings
from client.site.site import Site
from client.site.state_store import StateStore
from ept_fed.catalog.methods import FIXED_HEADS
from ept_fed.config.experiment import Experiment
from ept_fed.data.datasets.prefix_store import FrozenPrefix, PrefixStore
from ept_fed.data.datasets.prefixed import PrefixedDataset
from ept_fed.data.datasets.prepare import SiteData
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.backbones import Backbone, create_backbone
from ept_fed.models.factory import create_model
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.seeds import derive_seed
from ept_fed.training.fixed_head import rescale_head
from ept_fed.training.precision import use_bfloat16

__all__ = ["create_site", "create_start_model", "load_backbone"]

_FIRST_BLOCK = 2  # stages: the embedding and a block
_MIB = 2**20


def load_backbone(experiment: Experiment) -> Backbone:
    """Return the frozen backbone of an experiment.

    Raises:
        InputRefusedError: see `create_backbone`.
    """
    return create_backbone(
        experiment.model.backbone,
        weights=experiment.model.weights,
        image_size=experiment.model.image_size,
        seed=derive_seed(experiment.seed, "backbone"),
    )


def create_start_model(experiment: Experiment, backbone: Backbone, classes: int, device: torch.device) -> TunedViT:
    """Return the initial model of every site in a run, drawn from the run's seed.

    Raises:
        InputRefusedError: if the method cannot run on this backbone.
    """
    seed = derive_seed(experiment.seed, "model")
    model = create_model(experiment.model, backbone, num_classes=classes, seed=seed)
    if experiment.training.head in FIXED_HEADS:
        rescale_head(model, experiment.training.fixed_head_std)
    return model.to(device)


def create_site(
    experiment: Experiment,
    data: SiteData,
    slot: ModelSlot,
    *,
    run: str,
    states: StateStore | None = None,
    prefixes: PrefixStore | None = None,
) -> Site:
    """Return a site that starts or resumes from `states`; None keeps its states in memory.

    With `prefixes`, the frozen first layers run once per image and view.

    Raises:
        InputRefusedError: if the memory for the frozen layers' outputs does not suffice for one image.
    """
    return Site(
        data if prefixes is None else _run_frozen_layers(experiment, data, slot.model, prefixes),
        slot,
        RunSettings.of(experiment, data.name, run, slot.start, slot.model.device),
        states,
    )


def _run_frozen_layers(experiment: Experiment, data: SiteData, model: TunedViT, prefixes: PrefixStore) -> SiteData:
    """Return the site's datasets with the frozen layers' outputs for images, if a block is among these layers."""
    memory, stages = experiment.model.prefix_memory, model.frozen_stages
    if not memory or stages < _FIRST_BLOCK:
        return data
    bfloat16 = use_bfloat16(experiment.training.precision, model.device)

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
            x = model.forward_prefix(images.to(model.device))
        return x.to("cpu", torch.bfloat16 if bfloat16 else torch.float32)

    numbers = model.backbone.num_tokens * int(model.vit.embed_dim)
    needed = math.ceil(numbers * (2 if bfloat16 else 4) / _MIB)
    if memory < needed:
        fix = f"one image of {model.backbone.name} needs {needed}; give more, or 0 to compute it anew every time"
        raise InputRefusedError([Problem("model.prefix_memory", memory, fix)])
    key = f"{model.backbone.digest} {model.backbone.input} stages {stages} bfloat16 {bfloat16} {model.device.type}"
    prefix = FrozenPrefix(f"{key} {torch.__version__}", run)
    train, validation, test = (PrefixedDataset(part, prefix, prefixes) for part in data.parts())
    return replace(data, train=train, validation=validation, test=test)
