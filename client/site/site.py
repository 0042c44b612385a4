"""One hospital's side of the federation: its images, its state, and its answers to requests."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from client.site.held_model import HeldModel
from client.site.local_round import noop_local_round, train_local_round
from client.site.model_slot import ModelSlot
from client.site.privacy_plan import RoundCost, plan_private_round, plan_requested_round
from client.site.run_settings import RunSettings
from client.site.state_store import SiteState, StateLostError, StateMemory, StateStore, capture_model
from client.site.validation_curve import ValidationCurve
from ept_fed.config.experiment import TrainingSettings
from ept_fed.data.datasets.prepare import CachedDataset, SiteData
from ept_fed.privacy.dp.accountant import GaussianSteps
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import (
    TOLD_METRICS,
    Header,
    MessageRefusedError,
    RoundReply,
    RoundRequest,
)
from ept_fed.protocol.stage_messages import StageRequest
from ept_fed.training.loop import RoundScope, TrainingOutcome
from ept_fed.training.optimizer import moves_method
from ept_fed.training.payload import export_payload, payload_layout
from ept_fed.training.penalties import ProximalTerm

__all__ = ["Charge", "Site"]

Charge = Callable[[RoundCost], None]


class Site:
    """A site: trains and evaluates on request; personalised head, the columns' shape and optimiser state stay local.

    Its only memory is the state after each trained round, in its store. `hold` loads it into the model whenever the
    site uses it. So a round that is requested again has the same result.

    Attributes:
        name: the site's registered name.
        data: the site's splits.
        layout: layout of the payload that this site sends and accepts.
        settings: the site's settings of the run.
    """

    def __init__(
        self, data: SiteData, slot: ModelSlot, settings: RunSettings, states: StateStore | None = None
    ) -> None:
        """Set up a site for one run.

        Args:
            data: the site's images.
            slot: the model, which other sites in this process may use too.
            settings: the site's settings of the run.
            states: store of the site's states; None keeps them in memory.
        """
        self.name, self.data, self.settings = data.name, data, settings
        self.layout = payload_layout(
            slot.model,
            share=settings.share,
            payload=settings.payload,
            classes=data.classes,
            statistics=settings.statistics,
        )
        self._slot = slot
        self._states: StateStore = StateMemory() if states is None else states
        self._selected: int | None = None

    @property
    def backbone_digest(self) -> str:
        """SHA-256 of the backbone."""
        return self._slot.model.backbone.digest

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

    def select_round(self, round_number: int) -> None:
        """Use the state after a round until the site trains again, because the run keeps the prompts of that round."""
        self._selected = round_number

    @contextmanager
    def hold(self, payload: Vector | None = None) -> Iterator[HeldModel]:
        """Lend the model with the tensors of `state`, and over them a payload if there is one.

        Raises:
            RuntimeError: if the model is lent already.
            PayloadMismatchError, TrainingDivergedError: see `HeldModel.adopt`.
        """
        with self._hold(self.state) as held:
            if payload is not None:
                held.adopt(payload)
            yield held

    def own_payload(self) -> Vector:
        """Return the payload after the round of `state`; the initial payload if this site never trained."""
        with self.hold() as held:
            return held.export()

    def initial(self) -> Vector:
        """Return the initial payload of the run, which is the same at every site."""
        with self._slot.hold(self.name, None) as model:
            return export_payload(model, self.layout)

    def split(self, name: str) -> CachedDataset:
        """Return a split by name: train, validation or test."""
        return {"train": self.data.train, "validation": self.data.validation, "test": self.data.test}[name]

    def train(self, request: RoundRequest, *, charge: Charge | None = None) -> RoundReply:
        """Adopt the global payload, evaluate it on the validation images, train one round, and return the own payload.

        If statistics of an LDA head are shared, nothing is trained in the last round: its payload contains the
        statistics of the final prompts, so that the head computed from them fits. Nothing is trained either if the
        settings train no tensor besides such a head.

        Args:
            request: a request for this site that fits it, see `require` and `require_fit`.
            charge: charges the cost of a private round to the site's budget before the round begins, or raises; None
                if there is no budget, as in a simulation.

        Raises:
            MessageRefusedError: for settings that this run did not begin with, or a round so long ago that the state
                before it is gone.
            TrainingDivergedError: if the loss is not finite; nothing of the round is kept.
        """
        try:
            before = self.state_before(request.header.round)
        except StateLostError as lost:
            raise MessageRefusedError(str(lost)) from lost
        settings = request.training
        if settings.head != self.settings.head_kind:
            fix = f"is not '{self.settings.head_kind}', which this run began with"
            raise MessageRefusedError(f"training.head = '{settings.head}' {fix}")
        noise = self.settings.noise
        private = plan_requested_round(settings, request, self.settings.privacy, len(self.data.train))
        cost = private if noise is None else noise.plan(request)
        self._selected = None
        started = time.perf_counter()
        with self._hold(before) as held:
            held.adopt(request.payload, head=len(self.data.validation) > 0)
            _, received = held.assess(self.data.validation)
            held.prepare_training()
            gradient = held.gradient(settings.batch_size) if request.wants_gradient else None
            penalties = held.penalties(settings.proximal_mu, request.correction)
            if cost is not None and charge is not None:
                charge(cost)
            spending = None if private is None else private.spending
            if self.settings.statistics is not None and (
                request.header.round == request.rounds or not moves_method(held.model, settings)
            ):
                trained = self._rest(held, settings, request.header.round, before)
            else:
                trained, state = self._train_round(
                    held, settings, request.header.round, request.rounds, before, penalties, spending
                )
                self._states.save(replace(state, best_round=request.best_round))
            payload = None if self.settings.secure_aggregation else held.export()
        if payload is not None and noise is not None:
            payload = noise.cover(request.payload, payload)
        metrics = {
            "loss": trained.loss,
            # With noise, the maximum is reported: the true number of steps may leak the number of images per class.
            "steps": float(trained.steps if noise is None else settings.max_steps(len(self.data.train))),
            "seconds": time.perf_counter() - started,
            **{f"validation_{name}": value for name, value in received.items()},
        }
        return RoundReply(request.header, "train", payload, len(self.data.train), self._withhold(metrics), gradient)

    def evaluate(self, request: RoundRequest) -> RoundReply:
        """Evaluate the global payload with the site's head on one of its splits, without training.

        Args:
            request: a request for this site that fits it, see `require` and `require_fit`.

        Raises:
            MessageRefusedError: for a round so long ago that its state is gone.
        """
        started = time.perf_counter()
        if request.best_round:
            self.select_round(request.best_round)
        try:
            state = self.state
        except StateLostError as lost:
            raise MessageRefusedError(str(lost)) from lost
        with self._hold(state) as held:
            held.adopt(request.payload)
            _, metrics = held.assess(self.split(request.split))
        return RoundReply(
            header=request.header,
            phase="evaluate",
            payload=None,
            examples=len(self.split(request.split)),
            metrics=self._withhold({**metrics, "seconds": time.perf_counter() - started}),
        )

    def require_fit(self, request: RoundRequest) -> None:
        """Raise PayloadMismatchError unless a request's vectors are finite float32 of the layout.

        Nothing checks them again when the request is answered.
        """
        for vector in (request.payload, request.correction):
            if vector is not None:
                self.layout.check(vector)

    def require(self, request: RoundRequest | StageRequest) -> None:
        """Raise unless a request is for this site.

        Raises:
            MessageRefusedError: for another run, backbone, layout or version, or a round that does not exist.
        """
        header = request.header
        header.require(Header(self.settings.run, header.round, self.backbone_digest, self.layout.hash))
        if isinstance(request, RoundRequest) and not 1 <= header.round <= request.rounds:
            raise MessageRefusedError(f"round {header.round} of {request.rounds} does not exist")

    def masked_payload(self, round_number: int, received: Vector, *, minimum: int) -> Vector:
        """Return the payload after training this round, to be masked; with noise it differs each time.

        Args:
            round_number: number of the round.
            received: the payload that the round began with.
            minimum: minimum number of sites in a sum.

        Raises:
            MessageRefusedError: if this is not the round that the site trained last.
        """
        state = self.state
        if state is None or state.round != round_number:
            raise MessageRefusedError(f"round {round_number} is not the round that the site trained last")
        trained, noise = self.own_payload(), self.settings.noise
        return trained if noise is None else noise.cover(received, trained, shares=minimum)

    def fit(
        self,
        settings: TrainingSettings,
        round_number: int,
        rounds: int,
        *,
        payload: Vector | None = None,
        tolerance: float = 0.0,
    ) -> TrainingOutcome:
        """Train one round without any exchange, from the site's own state before it or from a payload.

        The state after the round also has the results on the validation images, see `curve`, and the state of the round
        that `ValidationCurve.choose_round` chooses with this tolerance is kept.

        Raises:
            PayloadMismatchError: if the payload does not fit this site's layout.
            TrainingDivergedError: if training diverges; nothing of the round is kept.
        """
        before, self._selected = self._states.latest(before=round_number), None
        with self._hold(before) as held:
            if payload is not None:
                held.adopt(payload)
            elif before is None:
                held.refit_head()
            if held.head_fit is not None and not moves_method(held.model, settings):
                return self._rest(held, settings, round_number, before)
            private = None
            if settings.privacy is not None:
                private = plan_private_round(settings, len(self.data.train), rounds)
            outcome, state = self._train_round(held, settings, round_number, rounds, before, [], private)
            # The site keeps the prompts of the round, so an LDA head is fitted to them.
            held.refit_head()
            curve = ValidationCurve.read({} if before is None else before.tensors)
            if len(self.data.validation):
                curve = curve.add(held.assess(self.data.validation)[1])
            tensors = {**state.tensors, **capture_model(held.model), **curve.tensors()}
        self._states.save(replace(state, tensors=tensors, best_round=curve.choose_round(tolerance)))
        return outcome

    @property
    def curve(self) -> ValidationCurve:
        """Results on the validation images after each round of `fit`; empty for a site of a federation."""
        newest = self._states.latest()
        return ValidationCurve() if newest is None else ValidationCurve.read(newest.tensors)

    @property
    def trained_rounds(self) -> int:
        """Number of the last round that this site trained; 0 at the start."""
        newest = self._states.latest()
        return 0 if newest is None else newest.round

    def _withhold(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return the metrics that may leave; they have no noise, so with noise on updates they become undefined."""
        noise = self.settings.noise
        if noise is None or noise.settings.metrics:
            return metrics
        return {key: value if key in TOLD_METRICS else math.nan for key, value in metrics.items()}

    @contextmanager
    def _hold(self, state: SiteState | None) -> Iterator[HeldModel]:
        with self._slot.hold(self.name, state) as model:
            own, number = (self._slot.start, 0) if state is None else (state.tensors, state.round)
            yield HeldModel(model, own, number, self.data, self.layout, self.settings)

    def _rest(
        self, held: HeldModel, settings: TrainingSettings, round_number: int, before: SiteState | None
    ) -> TrainingOutcome:
        """Store the current model as the state after a round without training; return its loss on training images."""
        _, metrics = held.assess(self.data.train)
        self._states.save(noop_local_round(held.model, settings, round_number, before=before))
        return TrainingOutcome(metrics["loss"], 0)

    def _train_round(
        self,
        held: HeldModel,
        settings: TrainingSettings,
        round_number: int,
        rounds: int,
        before: SiteState | None,
        penalties: list[Callable[[], Tensor]],
        private: GaussianSteps | None,
    ) -> tuple[TrainingOutcome, SiteState]:
        """Train the held model, and return the state after the round, which is not stored."""
        ditto = None
        if self.settings.ditto is not None and held.adopted is not None:
            ditto = (ProximalTerm(held.model, self.settings.ditto, self.settings.shared), self._slot.start)
        return train_local_round(
            held.model,
            self.data.train,
            settings,
            RoundScope(self.settings.seed, self.name, round_number, rounds),
            before=before,
            penalties=penalties,
            ditto=ditto,
            head=held.prepare_training(),
            private=private,
        )
