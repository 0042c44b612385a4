"""One hospital's side of the federation: its images, its state, and its answers to requests."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from client.site.local_round import noop_local_round, train_local_round
from client.site.model_slot import ModelSlot
from client.site.privacy_plan import RoundCost, plan_private_round, plan_requested_round
from client.site.site_model import SiteModel
from client.site.state_store import SiteState, StateLostError, StateStore, capture_model
from client.site.update_noise import UpdateNoise
from client.site.validation_curve import ValidationCurve
from ept_fed.catalog.methods import HeadKind, Statistics
from ept_fed.config.experiment import TrainingSettings
from ept_fed.config.privacy import PrivacySettings
from ept_fed.data.datasets.prepare import SiteData
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
from ept_fed.training.lda_head import HeadFit
from ept_fed.training.loop import RoundScope, TrainingOutcome
from ept_fed.training.optimizer import moves_method
from ept_fed.training.payload_gradient import payload_gradient
from ept_fed.training.penalties import LinearTerm, ProximalTerm

__all__ = ["Charge", "Site"]

Charge = Callable[[RoundCost], None]


class Site(SiteModel):
    """A site: trains and evaluates on request; personalised head, the columns' shape and optimiser state stay local.

    Its only memory is the state after each trained round, in its store. The model is loaded from there whenever this
    site uses it. So a round that is requested again has the same result.

    Attributes:
        run: identity of the run.
        secure_aggregation: whether updates leave under secure aggregation, and not with the reply.
    """

    def __init__(
        self,
        data: SiteData,
        slot: ModelSlot,
        *,
        run: str,
        seed: int,
        share: str = "prompts",
        payload: str = "folded",
        ditto: float | None = None,
        evaluation_batch: int = 32,
        precision: str = "auto",
        head_kind: HeadKind = "trained",
        head: HeadFit | None = None,
        statistics: Statistics | None = None,
        privacy: PrivacySettings | None = None,
        noise: UpdateNoise | None = None,
        secure_aggregation: bool = False,
        states: StateStore | None = None,
    ) -> None:
        """Set up a site for one run.

        Args:
            data: the site's images.
            slot: the model, which other sites in this process may use too.
            run: identity of the run.
            seed: seed of the run.
            share: as in `FederationSettings`.
            payload: as in `FederationSettings`.
            ditto: lambda of a second, personal model (Ditto, Li et al. 2021, Algorithm 1); None keeps none.
            evaluation_batch: batch size for images outside training.
            precision: as in `TrainingSettings`.
            head_kind: as `training.head`; a request with another kind is refused.
            head: how an LDA head is computed for the current prompts; None trains the head with them, or keeps it
                frozen.
            statistics: statistics of an LDA head that are shared, with `share` prompts+head; None if none are shared.
            privacy: as in `TrainingSettings`; a request with other privacy settings is refused.
            noise: noise on whole updates; None adds no noise.
            secure_aggregation: whether updates leave under secure aggregation, see `masked_payload`, and not with the
                reply.
            states: store of the site's states; None keeps them in memory.
        """
        super().__init__(
            data,
            slot,
            share=share,
            payload=payload,
            evaluation_batch=evaluation_batch,
            precision=precision,
            head=head,
            statistics=statistics,
            states=states,
        )
        self.run, self.secure_aggregation, self._head_kind = run, secure_aggregation, head_kind
        self._seed, self._ditto, self._privacy, self._noise = seed, ditto, privacy, noise
        self._shared = ("prompts" if statistics else share, payload)

    @property
    def noisy(self) -> bool:
        """Whether noise is added to its whole updates."""
        return self._noise is not None

    def train(self, request: RoundRequest, *, charge: Charge | None = None) -> RoundReply:
        """Adopt the global payload, evaluate it on the validation images, train one round, and return the own payload.

        If statistics of an LDA head are shared, nothing is trained in the last round: its payload contains the
        statistics of the final prompts, so that the head computed from them fits. Nothing is trained either if the
        settings train no tensor besides such a head.

        Args:
            request: a request that fits this site, see `require`.
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
        if settings.head != self._head_kind:
            fix = f"is not '{self._head_kind}', which this run began with"
            raise MessageRefusedError(f"training.head = '{settings.head}' {fix}")
        private = plan_requested_round(settings, request, self._privacy, len(self.data.train))
        cost = private if self._noise is None else self._noise.plan(request)
        self._selected = None
        started = time.perf_counter()
        self._load(before)
        self._import(request.payload, used=len(self.data.validation) > 0)
        _, received = self.assess(self.data.validation)
        self.prepare_training()
        gradient = self._payload_gradient(settings.batch_size) if request.wants_gradient else None
        penalties = self._penalties(settings, request.correction)
        if cost is not None and charge is not None:
            charge(cost)
        spending = None if private is None else private.spending
        if self._shares_statistics and (
            request.header.round == request.rounds or not moves_method(self.model, settings)
        ):
            trained = self._rest(settings, request.header.round, before)
        else:
            trained, state = self._train_round(
                settings, request.header.round, request.rounds, before, penalties, spending
            )
            self._states.save(replace(state, best_round=request.best_round))
        payload = None if self.secure_aggregation else self.export()
        if payload is not None and self._noise is not None:
            payload = self._noise.cover(request.payload, payload)
        metrics = {
            "loss": trained.loss,
            # With noise, the maximum is reported: the true number of steps may leak the number of images per class.
            "steps": float(trained.steps if self._noise is None else settings.max_steps(len(self.data.train))),
            "seconds": time.perf_counter() - started,
            **{f"validation_{name}": value for name, value in received.items()},
        }
        return RoundReply(request.header, "train", payload, len(self.data.train), self._withhold(metrics), gradient)

    def evaluate(self, request: RoundRequest) -> RoundReply:
        """Evaluate the global payload with the site's head on one of its splits, without training.

        Args:
            request: a request that fits this site, see `require`.

        Raises:
            MessageRefusedError: for a round so long ago that its state is gone.
        """
        started = time.perf_counter()
        if request.best_round:
            self.select_round(request.best_round)
        try:
            self.adopt(request.payload)
        except StateLostError as lost:
            raise MessageRefusedError(str(lost)) from lost
        _, metrics = self.assess(self.split(request.split))
        return RoundReply(
            header=request.header,
            phase="evaluate",
            payload=None,
            examples=len(self.split(request.split)),
            metrics=self._withhold({**metrics, "seconds": time.perf_counter() - started}),
        )

    def require(self, request: RoundRequest | StageRequest) -> None:
        """Raise unless a request fits this site; nothing is checked again when it is answered.

        Raises:
            MessageRefusedError: for another run, backbone, layout or version, or a round that does not exist.
            PayloadMismatchError: for a vector that is not a finite float32 vector of this site's layout.
        """
        header = request.header
        header.require(Header(self.run, header.round, self.backbone_digest, self.layout.hash))
        if isinstance(request, StageRequest):
            return
        if not 1 <= header.round <= request.rounds:
            raise MessageRefusedError(f"round {header.round} of {request.rounds} does not exist")
        for vector in (request.payload, request.correction):
            if vector is not None:
                self.layout.check(vector)

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
        trained = self.own_payload()
        return trained if self._noise is None else self._noise.cover(received, trained, shares=minimum)

    def fit(
        self, settings: TrainingSettings, round_number: int, rounds: int, *, payload: Vector | None = None
    ) -> TrainingOutcome:
        """Train one round without any exchange, from the site's own state before it or from a payload.

        The state after the round also has the results on the validation images, see `curve`, and the state of the best
        round is kept.

        Raises:
            PayloadMismatchError: if the payload does not fit this site's layout.
            TrainingDivergedError: if training diverges; nothing of the round is kept.
        """
        before, self._selected = self._states.latest(before=round_number), None
        self._load(before)
        if payload is not None:
            self._import(payload)
        elif before is None:
            self.refit_head()
        if self.head_fit is not None and not moves_method(self.model, settings):
            return self._rest(settings, round_number, before)
        private = None
        if settings.privacy is not None:
            private = plan_private_round(settings, len(self.data.train), rounds)
        outcome, state = self._train_round(settings, round_number, rounds, before, [], private)
        # The site keeps the prompts of the round, so an LDA head is fitted to them.
        self.refit_head()
        curve = ValidationCurve.read({} if before is None else before.tensors)
        if len(self.data.validation):
            curve = curve.add(self.assess(self.data.validation)[1])
        tensors = {**state.tensors, **capture_model(self.model), **curve.tensors()}
        self._states.save(replace(state, tensors=tensors, best_round=curve.best_round))
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
        if self._noise is None or self._noise.settings.metrics:
            return metrics
        return {key: value if key in TOLD_METRICS else math.nan for key, value in metrics.items()}

    def _payload_gradient(self, batch_size: int) -> Vector:
        gradients = payload_gradient(self.model, self.data.train, batch_size=batch_size, shared=self._shared)
        return self.layout.flatten({name: tensor.float().cpu().numpy() for name, tensor in gradients.items()})

    def _penalties(self, settings: TrainingSettings, correction: Vector | None) -> list[Callable[[], Tensor]]:
        """Return the terms that the strategy adds to the loss of the next round."""
        penalties: list[Callable[[], Tensor]] = []
        if settings.proximal_mu:
            penalties.append(ProximalTerm(self.model, settings.proximal_mu, self._shared))
        if correction is not None:
            tensors = self.layout.unflatten(correction)
            coefficients = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
            penalties.append(LinearTerm(self.model, coefficients, self._shared))
        return penalties

    def _rest(self, settings: TrainingSettings, round_number: int, before: SiteState | None) -> TrainingOutcome:
        """Store the current model as the state after a round without training; return its loss on training images."""
        _, metrics = self.assess(self.data.train)
        self._states.save(noop_local_round(self.model, settings, round_number, before=before))
        return TrainingOutcome(metrics["loss"], 0)

    def _train_round(
        self,
        settings: TrainingSettings,
        round_number: int,
        rounds: int,
        before: SiteState | None,
        penalties: list[Callable[[], Tensor]],
        private: GaussianSteps | None,
    ) -> tuple[TrainingOutcome, SiteState]:
        """Train the current model, leave it in the slot, and return the state after the round, which is not stored."""
        model, received = self.model, self._adopted
        ditto = None
        if self._ditto is not None and received is not None:
            ditto = (ProximalTerm(model, self._ditto, self._shared), self._slot.start)
        scope = RoundScope(self._seed, self.name, round_number, rounds)
        head = self.prepare_training()
        try:
            outcome, state = train_local_round(
                model,
                self.data.train,
                settings,
                scope,
                before=before,
                penalties=penalties,
                ditto=ditto,
                head=head,
                private=private,
            )
        except BaseException:
            self._slot.holder = None
            raise
        self._adopted = None
        return outcome, state
