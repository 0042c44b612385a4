"""The settings of a run on which a site's computation depends."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from client.site.state_store import Tensors
from client.site.update_noise import UpdateNoise
from ept_fed.catalog.methods import HEAD_TENSORS, HeadKind, Statistics
from ept_fed.config.experiment import Experiment
from ept_fed.config.privacy import PrivacySettings
from ept_fed.seeds import derive_seed
from ept_fed.training.fixed_head import FixedHead
from ept_fed.training.lda_head import HeadFit
from ept_fed.training.precision import use_bfloat16

__all__ = ["RunSettings", "create_head_fit", "derive_masked_seed"]


@dataclass(frozen=True)
class RunSettings:
    """The settings of one site in one run.

    Attributes:
        run: identity of the run.
        seed: from which the order of the images and their augmentation derive.
        share: as in `FederationSettings`.
        payload: as in `FederationSettings`.
        statistics: statistics of an LDA head that are shared, with `share` prompts+head; None if none are shared.
        secure_aggregation: whether updates leave under secure aggregation, and not with the reply.
        noise: noise on whole updates; None adds no noise.
        privacy: as in `TrainingSettings`; a request with other privacy settings is refused.
        head_kind: as `training.head`; a request with another kind is refused.
        head: how an LDA head is computed for the current prompts; None trains the head with them, or keeps it frozen.
        ditto: lambda of a second, personal model (Ditto, Li et al. 2021, Algorithm 1); None keeps none.
        evaluation_batch: batch size for images outside training.
        bfloat16: whether images outside training are evaluated in bfloat16.
    """

    run: str
    seed: int
    share: str
    payload: str
    statistics: Statistics | None
    secure_aggregation: bool
    noise: UpdateNoise | None
    privacy: PrivacySettings | None
    head_kind: HeadKind
    head: HeadFit | None
    ditto: float | None
    evaluation_batch: int
    bfloat16: bool

    @classmethod
    def of(cls, experiment: Experiment, site: str, run: str, start: Tensors, device: torch.device) -> Self:
        """Return the settings of a site.

        Args:
            experiment: validated settings.
            site: the site's name, from which seeds derive.
            run: identity of the run.
            start: the initial tensors of every site.
            device: on which the model is.
        """
        federation, training = experiment.federation, experiment.training
        secure, private = federation.secure_aggregation is not None, federation.site_privacy
        noise = None
        if private is not None:
            noise = UpdateNoise(private, federation.rounds, secure_aggregation=secure)
        return cls(
            run=run,
            seed=derive_masked_seed(experiment.seed, run) if secure else experiment.seed,
            share=federation.share,
            payload=federation.payload,
            statistics=experiment.shared_statistics,
            secure_aggregation=secure,
            noise=noise,
            privacy=training.privacy,
            head_kind=training.head,
            head=_choose_head(experiment, site, start, device),
            ditto=experiment.personalisation.ditto,
            evaluation_batch=experiment.evaluation.batch_size,
            bfloat16=use_bfloat16(training.precision, device),
        )

    @property
    def shared(self) -> tuple[str, str]:
        """Which of the model's tensors are in the payload, and in which form."""
        return "prompts" if self.statistics else self.share, self.payload


def derive_masked_seed(seed: int, run: str) -> int:
    """Return the seed of training in a run whose updates leave under secure aggregation.

    No two runs train to the same bits, even with the same seed. Otherwise the difference of the sums of two runs, one
    with and one without a site, would be the update of that site.

    Args:
        seed: the seed of the run.
        run: the identity of the run, which a site accepts only once.
    """
    return derive_seed(seed, "masked", run)


def create_head_fit(experiment: Experiment, site: str, device: torch.device) -> HeadFit:
    """Return how a site computes an LDA head of its own images."""
    return HeadFit(
        shrinkage=experiment.training.head_shrinkage,
        seed=derive_seed(experiment.seed, site, "head"),
        batch_size=experiment.evaluation.batch_size,
        bfloat16=use_bfloat16(experiment.training.precision, device),
    )


def _choose_head(experiment: Experiment, site: str, start: Tensors, device: torch.device) -> HeadFit | None:
    training = experiment.training
    if training.head not in ("lda", "fixed+lda"):
        return None
    fixed = None
    if training.head == "fixed+lda":
        weight, bias = (start[f"model/{name}"].astype(np.float64) for name in HEAD_TENSORS)
        fixed = FixedHead(weight, bias, training.head_evidence)
    return replace(create_head_fit(experiment, site, device), fixed=fixed)
