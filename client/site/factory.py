"""Construction of sites from an experiment; used by simulations for many sites and by a worker for its own site."""

import numpy as np
import torch

from client.site.model_slot import ModelSlot
from client.site.site import Site
from client.site.state_store import StateStore
from client.site.update_noise import UpdateNoise
from ept_fed.catalog.methods import HEAD_TENSORS
from ept_fed.config.experiment import Experiment, FederationSettings
from ept_fed.data.datasets.prepare import SiteData
from ept_fed.models.backbones import Backbone, create_backbone
from ept_fed.models.factory import create_model
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.seeds import derive_seed
from ept_fed.training.fixed_head import FixedHead
from ept_fed.training.lda_head import HeadFit
from ept_fed.training.precision import use_bfloat16

__all__ = ["create_site", "create_start_model", "load_backbone"]


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
    return create_model(experiment.model, backbone, num_classes=classes, seed=seed).to(device)


def create_site(
    experiment: Experiment, data: SiteData, slot: ModelSlot, *, run: str, states: StateStore | None = None
) -> Site:
    """Return a site that starts or resumes from `states`; None keeps its states in memory."""
    return Site(
        data,
        slot,
        run=run,
        seed=experiment.seed,
        share=experiment.federation.share,
        payload=experiment.federation.payload,
        evaluation_batch=experiment.evaluation.batch_size,
        precision=experiment.training.precision,
        ditto=experiment.personalisation.ditto,
        head_kind=experiment.training.head,
        head=_choose_head(experiment, data.name, slot),
        statistics=experiment.shared_statistics,
        privacy=experiment.training.privacy,
        noise=_choose_noise(experiment.federation),
        secure_aggregation=experiment.federation.secure_aggregation is not None,
        states=states,
    )


def _choose_noise(federation: FederationSettings) -> UpdateNoise | None:
    private = federation.site_privacy
    return (
        None
        if private is None
        else UpdateNoise(private, federation.rounds, secure_aggregation=federation.secure_aggregation is not None)
    )


def _choose_head(experiment: Experiment, site: str, slot: ModelSlot) -> HeadFit | None:
    training = experiment.training
    if training.head not in ("lda", "fixed+lda"):
        return None
    fixed = None
    if training.head == "fixed+lda":
        weight, bias = (slot.start[f"model/{name}"].astype(np.float64) for name in HEAD_TENSORS)
        fixed = FixedHead(weight, bias, training.head_evidence)
    return HeadFit(
        shrinkage=training.head_shrinkage,
        seed=derive_seed(experiment.seed, site, "head"),
        batch_size=experiment.evaluation.batch_size,
        bfloat16=use_bfloat16(training.precision, slot.model.device),
        fixed=fixed,
    )
