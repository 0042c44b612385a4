"""One site's use of a model in memory: its own tensors, the payloads it adopts and exports, and its evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Self

import numpy as np

from client.site.model_slot import ModelSlot
from client.site.state_store import SiteState, StateMemory, StateStore, Tensors, restore_model
from ept_fed.catalog.methods import Statistics
from ept_fed.data.datasets.prepare import CachedDataset, SiteData
from ept_fed.evaluation.metrics import Array, classification_metrics
from ept_fed.evaluation.prediction import predict_probabilities
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import QUALITY_METRICS
from ept_fed.training.lda import ClassStatistics
from ept_fed.training.lda_head import FeaturesDivergedError, HeadFit
from ept_fed.training.loop import TrainingDivergedError
from ept_fed.training.payload import export_payload, import_payload, payload_layout, read_statistics
from ept_fed.training.precision import use_bfloat16

__all__ = ["SiteModel"]


class SiteModel:
    """A site's images and its use of the model, with own tensors from its store and the payload that it adopted last.

    Attributes:
        name: the site's registered name.
        data: the site's splits.
        layout: layout of the payload that this site sends and accepts.
        payload: folded or raw, as in `FederationSettings`.
    """

    def __init__(
        self,
        data: SiteData,
        slot: ModelSlot,
        *,
        share: str,
        payload: str,
        evaluation_batch: int,
        precision: str,
        head: HeadFit | None,
        statistics: Statistics | None,
        states: StateStore | None,
    ) -> None:
        """Set up a site; see `client.site.site.Site`."""
        self.name, self.data, self.payload = data.name, data, payload
        self.layout = payload_layout(
            slot.model, share=share, payload=payload, classes=data.classes, statistics=statistics
        )
        self._head, self._shares_statistics = head, statistics is not None
        self._received: ClassStatistics | None = None
        self._slot = slot
        self._states: StateStore = StateMemory() if states is None else states
        self._evaluation_batch = evaluation_batch
        self._bfloat16 = use_bfloat16(precision, slot.model.device)
        self._adopted: Vector | None = None
        self._lent = False
        self._selected: int | None = None

    @property
    def model(self) -> TunedViT:
        """The model with this site's own tensors and the payload that it adopted last.

        Raises:
            RuntimeError: if another site took the slot while it held temporary tensors of this site.
        """
        if self._slot.holder is not self:
            if self._lent:
                raise RuntimeError(f"{self.name}: another site took the model before this one was done with it")
            adopted = self._adopted
            self._load(self.state)
            if adopted is not None:
                self._import(adopted)
        return self._slot.model

    @property
    def backbone_digest(self) -> str:
        """SHA-256 of the backbone."""
        return self._slot.model.backbone.digest

    @property
    def head_fit(self) -> HeadFit | None:
        """How the head is computed, with the adopted payload's statistics of all sites; None if it is not computed."""
        return None if self._head is None else replace(self._head, received=self._received)

    def prepare_training(self) -> HeadFit | None:
        """Restore the head that is used in training; return how it is recomputed during training, None if it is not.

        A fixed+LDA head is the plain fixed head during training.
        """
        fit = self.head_fit
        if fit is None or fit.fixed is None:
            return fit
        fit.fixed.put_back(self.model)
        return None

    @property
    def state(self) -> SiteState | None:
        """The state after the selected round, or else after the last trained round; None at the start."""
        return self._states.latest() if self._selected is None else self._states.after(self._selected)

    def state_before(self, round_number: int) -> SiteState | None:
        """Return the state that a round would start from; None for the start of the run.

        Raises:
            StateLostError, DamagedCheckpointError: see `StateStore.latest`.
        """
        return self._states.latest(before=round_number)

    def restore(self) -> Self:
        """Load this site's own state into the slot, without a payload, and return the site."""
        self._load(self.state)
        return self

    def adopt(self, payload: Vector) -> None:
        """Adopt a payload; the own columns keep their shape, and the head remains unless the payload contains one.

        Raises:
            PayloadMismatchError: if it does not fit this site's layout.
        """
        self._load(self.state)
        self._import(payload)

    def own_payload(self) -> Vector:
        """Return the payload after the round of `state`; the initial payload if this site never trained."""
        self._load(self.state)
        return self.export()

    def initial(self) -> Vector:
        """Return the initial payload of the run, which is the same at every site."""
        self._load(None)
        return export_payload(self._slot.model, self.layout)

    def export(self) -> Vector:
        """Return the payload that this site would send: that of the current model, with statistics if they are shared.

        Raises:
            TrainingDivergedError: if the prompts lead to features that are not finite.
        """
        model, statistics = self.model, None
        if self._head is not None and self._shares_statistics:
            with self._reporting_divergence():
                statistics = self._head.measure(model, self.data.train)
        return export_payload(model, self.layout, statistics)

    def lend(self, tensors: Tensors, prefix: str = "model") -> None:
        """Load tensors of `capture_model` into the slot; they are lost when another site takes it."""
        restore_model(self._slot.model, tensors, prefix)
        self._slot.holder, self._adopted, self._lent = self, None, True

    def refit_head(self) -> None:
        """Compute the head anew for the prompts in the model, if this site has an LDA head.

        Raises:
            TrainingDivergedError: if the prompts lead to features that are not finite.
        """
        if self.head_fit is not None:
            with self._reporting_divergence():
                self.head_fit.apply(self._slot.model, self.data.train)

    def select_round(self, round_number: int) -> None:
        """Use the state after a round until the site trains again, because the run keeps the prompts of that round."""
        self._selected, self._slot.holder = round_number, None

    def assess(self, images: CachedDataset) -> tuple[Array, dict[str, float]]:
        """Return probabilities (n, C) of the current model, and `QUALITY_METRICS`."""
        probabilities = self.predict(images)
        metrics = classification_metrics(images.labels.numpy(), probabilities, images.task)
        return probabilities, {key: metrics[key] for key in QUALITY_METRICS}

    def predict(self, images: CachedDataset) -> Array:
        """Return probabilities (n, C) of the current model."""
        return predict_probabilities(self.model, images, batch_size=self._evaluation_batch, bfloat16=self._bfloat16)

    def split(self, name: str) -> CachedDataset:
        """Return a split by name: train, validation or test."""
        return {"train": self.data.train, "validation": self.data.validation, "test": self.data.test}[name]

    def _load(self, state: SiteState | None) -> None:
        restore_model(self._slot.model, self._slot.start if state is None else state.tensors)
        self._slot.holder, self._adopted, self._lent = self, None, False
        self._received = None

    def _import(self, payload: Vector, *, used: bool = True) -> None:
        """Load a payload into the model; a fixed+LDA head, which training does not need, is computed only if `used`."""
        import_payload(self._slot.model, payload, self.layout)
        self._adopted, self._received = np.array(payload), read_statistics(payload, self.layout)
        if used or self._head is None or self._head.fixed is None:
            self.refit_head()

    @contextmanager
    def _reporting_divergence(self) -> Iterator[None]:
        try:
            yield
        except FeaturesDivergedError as diverged:
            self._slot.holder = None
            raise TrainingDivergedError(str(diverged)) from diverged
