"""A site's model while the site holds it: payloads in and out, the head, and evaluation."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from client.site.run_settings import RunSettings
from client.site.state_store import Tensors, restore_model
from ept_fed.data.datasets.prepare import CachedDataset, SiteData
from ept_fed.evaluation.metrics import Array, classification_metrics
from ept_fed.evaluation.prediction import predict_probabilities
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import QUALITY_METRICS
from ept_fed.training.lda import ClassStatistics
from ept_fed.training.lda_head import FeaturesDivergedError, HeadFit
from ept_fed.training.loop import TrainingDivergedError
from ept_fed.training.payload import export_payload, import_payload, read_statistics
from ept_fed.training.payload_gradient import payload_gradient
from ept_fed.training.penalties import LinearTerm, ProximalTerm

__all__ = ["HeldModel", "LentModel"]


class HeldModel:
    """The model in a slot, with a site's own tensors; it must not be used after the `with` block that returned it.

    Attributes:
        model: the model.
        data: the site's splits.
        layout: layout of the payload.
        settings: the site's settings of the run.
        own: the site's own tensors: those of its state, or of the start.
        round: the trained round of that state; 0 for the start.
        adopted: the payload that was adopted last; None if there is none.
    """

    def __init__(
        self,
        model: TunedViT,
        own: Tensors,
        round_number: int,
        data: SiteData,
        layout: PayloadLayout,
        settings: RunSettings,
    ) -> None:
        """Take the model, which has the tensors `own`."""
        self.round = round_number
        self.model, self.data, self.layout, self.settings = model, data, layout, settings
        self.adopted: Vector | None = None
        self.own = own
        self._received: ClassStatistics | None = None

    @property
    def head_fit(self) -> HeadFit | None:
        """How the head is computed, with the adopted payload's statistics of all sites; None if it is not computed."""
        head = self.settings.head
        return None if head is None else replace(head, received=self._received)

    def adopt(self, payload: Vector, *, head: bool = True) -> None:
        """Load a payload over the site's own tensors; the head remains unless the payload contains one.

        Args:
            payload: (layout.size,); sinks unfold into the site's own columns, which keep their shape.
            head: False leaves out the LDA part of a fixed+LDA head, which training does not need.

        Raises:
            PayloadMismatchError: if it has another size, or no images can have its statistics.
            TrainingDivergedError: if the prompts lead to features that are not finite.
        """
        restore_model(self.model, self.own)
        import_payload(self.model, payload, self.layout)
        self.adopted, self._received = np.array(payload), read_statistics(payload, self.layout)
        fit = self.settings.head
        if head or fit is None or fit.fixed is None:
            self.refit_head()

    def load(self, tensors: Tensors, prefix: str = "model") -> None:
        """Load tensors of `capture_model` instead of the site's own."""
        restore_model(self.model, tensors, prefix)

    def prepare_training(self) -> HeadFit | None:
        """Restore the head that is used in training; return how it is recomputed during training, None if it is not.

        A fixed+LDA head is the plain fixed head during training.
        """
        fit = self.head_fit
        if fit is None or fit.fixed is None:
            return fit
        fit.fixed.put_back(self.model)
        return None

    def refit_head(self) -> None:
        """Compute the head anew for the prompts in the model, if the site has an LDA head.

        Raises:
            TrainingDivergedError: if the prompts lead to features that are not finite.
        """
        if self.head_fit is not None:
            with _reporting_divergence():
                self.head_fit.apply(self.model, self.data.train)

    def penalties(self, proximal_mu: float, correction: Vector | None) -> list[Callable[[], Tensor]]:
        """Return the terms that a strategy adds to the loss: a pull to the present model, and ⟨correction, payload⟩."""
        found: list[Callable[[], Tensor]] = []
        if proximal_mu:
            found.append(ProximalTerm(self.model, proximal_mu, self.settings.shared))
        if correction is not None:
            tensors = self.layout.unflatten(correction)
            coefficients = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
            found.append(LinearTerm(self.model, coefficients, self.settings.shared))
        return found

    def gradient(self, batch_size: int) -> Vector:
        """Return the gradient (layout.size,) of the loss over all training images."""
        gradients = payload_gradient(self.model, self.data.train, batch_size=batch_size, shared=self.settings.shared)
        return self.layout.flatten({name: tensor.float().cpu().numpy() for name, tensor in gradients.items()})

    def export(self) -> Vector:
        """Return the payload that the site would send: that of the model, with statistics if they are shared.

        Raises:
            TrainingDivergedError: if the prompts lead to features that are not finite.
        """
        statistics, head = None, self.settings.head
        if head is not None and self.settings.statistics is not None:
            with _reporting_divergence():
                statistics = head.measure(self.model, self.data.train)
        return export_payload(self.model, self.layout, statistics)

    def assess(self, images: CachedDataset) -> tuple[Array, dict[str, float]]:
        """Return probabilities (n, C) of the model, and `QUALITY_METRICS`."""
        probabilities = self.predict(images)
        metrics = classification_metrics(images.labels.numpy(), probabilities, images.task)
        return probabilities, {key: metrics[key] for key in QUALITY_METRICS}

    def predict(self, images: CachedDataset) -> Array:
        """Return probabilities (n, C) of the model."""
        own = self.settings
        return predict_probabilities(self.model, images, batch_size=own.evaluation_batch, bfloat16=own.bfloat16)


# A site's model until the end of a `with` block.
LentModel: TypeAlias = AbstractContextManager[HeldModel]


@contextmanager
def _reporting_divergence() -> Iterator[None]:
    try:
        yield
    except FeaturesDivergedError as diverged:
        raise TrainingDivergedError(str(diverged)) from diverged
