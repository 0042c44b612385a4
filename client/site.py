"""One hospital's side of the federation: its images, its model, and how it answers a request."""

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

import ept_fed
from ept_fed.config import TrainingSettings
from ept_fed.data.datasets import CachedDataset, SiteData
from ept_fed.evaluation.calibration import fit_temperature
from ept_fed.evaluation.metrics import Array, classification_metrics
from ept_fed.evaluation.prediction import predict_probabilities
from ept_fed.models.payload import export_payload, import_payload, payload_layout
from ept_fed.models.vit import PromptedViT
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import QUALITY_METRICS, Header, MessageRefusedError, RoundReply, RoundRequest
from ept_fed.training.loop import RoundScope, TrainingOutcome, train_round, use_bfloat16
from ept_fed.training.optimizer import build_optimizer

__all__ = ["Site"]


class Site:
    """A site: train and evaluate on request, keep the head, the columns' shape and the optimiser's state at home.

    Attributes:
        name: the site's registered name.
        data: its splits.
        model: prompts, tokens and head of this site around the (possibly shared) frozen backbone.
        layout: of the payload this site sends and accepts.
    """

    def __init__(
        self,
        data: SiteData,
        model: PromptedViT,
        *,
        run: str,
        seed: int,
        share: str = "prompts",
        payload: str = "folded",
        evaluation_batch: int = 32,
        precision: str = "auto",
    ) -> None:
        """Set a site up for one run; `share` and `payload` as in `FederationSettings`."""
        self.name = data.name
        self.data = data
        self.model = model
        self.layout = payload_layout(model, share=share, payload=payload, classes=data.classes)
        self._run, self._seed = run, seed
        self._share, self._payload = share, payload
        self._evaluation_batch = evaluation_batch
        self._bfloat16 = use_bfloat16(precision, model.prompts.device)
        self._optimizer: torch.optim.Optimizer | None = None
        self._optimizer_settings: TrainingSettings | None = None

    def train(self, request: RoundRequest) -> RoundReply:
        """Take over the global payload, evaluate it on the validation images, train one round, return the own payload.

        Raises:
            MessageRefusedError: for a request of another run, backbone, layout or version, or with unfit settings.
            TrainingDivergedError: if the loss stops being a number; prompts and head are then as before the round.
        """
        self._require(request)
        try:
            settings = TrainingSettings.model_validate_json(request.settings)
        except ValidationError as error:
            raise MessageRefusedError(f"training settings are refused: {error.error_count()} are invalid") from error
        started = time.perf_counter()
        self.adopt(request.payload)
        _, received = self.assess(self.data.validation)
        trained = self.fit(settings, request.header.round, request.rounds)
        return RoundReply(
            header=request.header,
            phase="train",
            payload=self.export(),
            examples=len(self.data.train),
            metrics={
                "loss": trained.loss,
                "steps": float(trained.steps),
                "seconds": time.perf_counter() - started,
                **{f"validation_{name}": value for name, value in received.items()},
            },
        )

    def evaluate(self, request: RoundRequest) -> RoundReply:
        """Evaluate the global payload with the own head on one of the own splits; trains nothing.

        Raises:
            MessageRefusedError: for a request of another run, backbone, layout or version.
        """
        self._require(request)
        started = time.perf_counter()
        self.adopt(request.payload)
        _, metrics = self.assess(self.split(request.split))
        return RoundReply(
            header=request.header,
            phase="evaluate",
            payload=None,
            examples=len(self.split(request.split)),
            metrics={**metrics, "seconds": time.perf_counter() - started},
        )

    def fit(self, settings: TrainingSettings, round_number: int, rounds: int) -> TrainingOutcome:
        """Train one round from where the model stands, without any exchange.

        Raises:
            TrainingDivergedError: the model is then as before the round, and the optimiser starts anew.
        """
        optimizer = self._optimizer_for(settings)
        before = self._snapshot()
        scope = RoundScope(self._seed, self.name, round_number, rounds)
        try:
            return train_round(
                self.model, optimizer, self.data.train, settings, scope, shared=(self._share, self._payload)
            )
        except BaseException:
            self._restore(before)
            raise

    def adopt(self, payload: Vector) -> None:
        """Take over a payload; the own columns keep their shape, and the head stays unless the payload holds one.

        Raises:
            PayloadMismatchError: if it does not fit this site's layout.
        """
        import_payload(self.model, payload, self.layout)

    def export(self) -> Vector:
        """Return what this site would send: the payload of the model as it stands."""
        return export_payload(self.model, self.layout)

    def release(self) -> tuple[dict[str, Vector], dict[str, Any]]:
        """Return the model as it stands, for prediction at this site: tensors by name, and a description.

        The tensors are the payload's and this site's own head. The description holds what turns an image into
        probabilities again: backbone and digest, input, layers, embedding, classes, and the temperature fitted on the
        site's validation images.
        """
        model = self.model
        tensors = model.payload_tensors(share="prompts+head", payload=self._payload)
        probabilities, _ = self.assess(self.data.validation)
        labels = self.data.validation.labels.numpy()
        about = {
            "schema": 1,
            "run": self._run,
            "site": self.name,
            "backbone": {"name": model.backbone.name, "digest": model.backbone.digest},
            "input": asdict(model.backbone.input),
            "prompt_layers": list(model.layers),
            "embedding": model.embedding,
            "classes": list(self.data.classes),
            "task": self.data.task,
            "temperature": fit_temperature(labels, probabilities, self.data.task),
            "validation_images": len(self.data.validation),
            "code": ept_fed.__version__,
        }
        return {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}, about

    def assess(self, images: CachedDataset) -> tuple[Array, dict[str, float]]:
        """Return probabilities (n, C) of the model as it stands, and `QUALITY_METRICS`."""
        probabilities = predict_probabilities(
            self.model, images, batch_size=self._evaluation_batch, bfloat16=self._bfloat16
        )
        metrics = classification_metrics(images.labels.numpy(), probabilities, images.task)
        return probabilities, {key: metrics[key] for key in QUALITY_METRICS}

    def split(self, name: str) -> CachedDataset:
        """Return a split by name: train, validation or test."""
        return {"train": self.data.train, "validation": self.data.validation, "test": self.data.test}[name]

    def _require(self, request: RoundRequest) -> None:
        round_number = request.header.round
        mine = Header(self._run, round_number, self.model.backbone.digest, self.layout.hash)
        request.header.require(mine)
        if not 1 <= round_number <= request.rounds:
            raise MessageRefusedError(f"round {round_number} of {request.rounds} does not exist")
        self.layout.check(np.asarray(request.payload))

    def _optimizer_for(self, settings: TrainingSettings) -> torch.optim.Optimizer:
        stale = self._optimizer_settings != settings or settings.optimizer_state == "reset"
        if self._optimizer is None or stale:
            self._optimizer, self._optimizer_settings = build_optimizer(self.model, settings), settings
        return self._optimizer

    def _snapshot(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self._trainable()]

    @torch.no_grad()
    def _restore(self, before: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._trainable(), before, strict=True):
            parameter.copy_(value)
        self._optimizer = None

    def _trainable(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]
