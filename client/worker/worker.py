"""The site's worker: it keeps one site in memory and answers frames through the gate, one run at a time.

Not covered: everybody who can connect to its socket may send requests, within the limits of the gate. Everybody who can
read its memory or its state folder has the personalised head.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TypeVar

import ept_fed
from client.gate.interface import GateInterface
from client.site.privacy_plan import RoundCost
from client.site.run_record import Answer
from client.site.run_registry import RunRegistry
from client.site.secure_aggregation import (
    Credentials,
    SecureRounds,
    SumTerms,
    answer_stage,
    count_agreed_min_sites,
    plan_agreed_session,
)
from client.site.site import Site
from client.worker.error_replies import explain
from client.worker.site_cache import WarmSite
from client.worker.unix_sockets import Activity, WorkerStatus
from ept_fed.errors import InputRefusedError
from ept_fed.privacy.secure_aggregation.round_session import weigh_site
from ept_fed.protocol.frames import (
    Frame,
    Introduce,
    Refusal,
    decode_frame,
    encode_frame,
    kind_of,
)
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError, Vector
from ept_fed.protocol.messages import SPLITS, MessageRefusedError, RoundReply, RoundRequest, Split
from ept_fed.protocol.proposal import Proposal, SiteIntroduction
from ept_fed.protocol.stage_messages import StageReply, StageRequest
from ept_fed.validation.experiment import check_sites
from ept_fed.validation.load_site import SiteSettings

__all__ = ["Worker"]

_Made = TypeVar("_Made")

_log = logging.getLogger(__name__)


class _TurnedAwayError(MessageRefusedError):
    """The gate refused a message, and has recorded the refusal itself."""


@dataclass
class _Hold:
    """The run that holds the worker, its last requested round, and the time of its last message."""

    run: str
    round: int | None
    at: float


@dataclass(frozen=True)
class _Finished:
    """The last train reply before it passed the gate, and the digest of the request that it answers."""

    request: bytes
    reply: RoundReply


class Worker:
    """Answers frames with frames, for any number of threads; only one thread uses model and images."""

    def __init__(
        self,
        settings: SiteSettings,
        gate: GateInterface,
        *,
        credentials: Callable[[], Credentials | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start the working thread; nothing is stored before the first proposal.

        `credentials` reads the site's credentials; without them the site takes part in no secure aggregation.
        """
        self._settings, self._gate, self._clock = settings, gate, clock
        self._credentials = credentials
        self._secure: tuple[str, SecureRounds] | None = None
        self._registry = RunRegistry(settings.worker.state, settings.site)
        self._warm = WarmSite(settings)
        self._hold: _Hold | None = None
        self._last_message: float | None = None
        self._hold_lock = Lock()
        self._busy: Activity = "idle"
        self._finished: _Finished | None = None
        self._started = clock()
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        Thread(target=self._work, name="train", daemon=True).start()

    def answer(self, content: bytes) -> bytes:
        """Return the answer to a frame; a failure gives a refusal, without the text of an unexpected exception.

        A train request that was answered already gets the same reply again, without training.
        """
        kind = "unreadable"
        try:
            frame = decode_frame(content)
            kind = kind_of(frame)
            return encode_frame(self._answer(frame, content))
        except Exception as error:  # noqa: BLE001 - the text of an exception must not leave the site
            return encode_frame(self._decline(error, kind, content))

    def status(self) -> WorkerStatus:
        """Return the worker's status immediately, even during training; it is never sent as the answer to a frame."""
        with self._hold_lock:
            hold = None if self._hold is None or self._is_over(self._hold) else self._hold
        return WorkerStatus(
            site=self._settings.site,
            code=ept_fed.__version__,
            pid=os.getpid(),
            started=self._started,
            activity=self._busy,
            run=None if hold is None else hold.run,
            round=None if hold is None else hold.round,
            last_message=self._last_message,
            runs=self._registry.names(),
            backbone_digest=self._warm.backbone_digest,
            training_images=self._warm.training_images,
        )

    def _answer(self, frame: Frame, content: bytes) -> Frame:
        if isinstance(frame, Introduce):
            self._require_free(frame.run)
            self._at_gate(lambda: self._gate.admit_proposal(frame.run, frame.proposal, content))
            self._take_hold(frame.run, None)
            try:
                return self._in_turn(
                    "introduce", frame.run, lambda: self._introduce(frame.run, frame.proposal, content)
                )
            except Exception:
                # A run that the site does not take part in must not block other runs.
                self._let_go(frame.run)
                raise
        if not isinstance(frame, RoundRequest | StageRequest):
            raise MessageRefusedError(f"a worker does not answer a frame of kind '{kind_of(frame)}'")
        run = frame.header.run
        proposal = self._registry.find(run)
        self._take_hold(run, frame.header.round)
        try:
            if isinstance(frame, StageRequest):
                return self._in_turn("secure aggregation", run, lambda: self._reply_to_stage(frame, proposal, content))
            reply = self._in_turn(frame.phase, run, lambda: self._reply(frame, proposal, content))
        except _TurnedAwayError:
            self._let_go(run)
            raise
        if frame.phase == "evaluate" and (frame.best_round or frame.header.round == frame.rounds):
            # The evaluation of the last round, or of the chosen round, is a server's last request in a run.
            self._let_go(run)
        return reply

    def _introduce(self, run: str, proposal: Proposal, content: bytes) -> SiteIntroduction:
        site = self._warm.open(run, proposal, self._registry.states(run))
        if proposal.sites:
            self._require_secure_aggregation(run, proposal, site.layout, len(site.data.train))
        introduction = SiteIntroduction(
            site=self._settings.site,
            run=run,
            proposal=proposal.digest,
            backbone_digest=str(self._warm.backbone_digest),
            layout=site.layout,
            initial=site.initial(),
            examples=len(site.data.train),
        )
        counts: dict[Split, int] = {name: len(site.split(name)) for name in SPLITS}
        leaving = encode_frame(introduction)
        self._at_gate(lambda: self._gate.release_introduction(run, introduction, leaving, counts=counts))
        self._registry.agree(run, proposal)
        self._registry.record(run).note(Answer("introduction", len(content), len(leaving)))
        return introduction

    def _reply(self, request: RoundRequest, proposal: Proposal, content: bytes) -> RoundReply:
        run = request.header.run
        site = self._warm.open(run, proposal, self._registry.states(run))
        for vector in (request.payload, request.correction):
            if vector is not None:
                site.layout.check(vector)
        self._at_gate(lambda: self._gate.admit(request, proposal, site.layout, content))
        record = self._registry.record(run)
        stored = self._load_reply(request, content, site) if request.phase == "train" else None
        if stored is None:
            record.accept(request, self._warm.data.digest)
        if request.phase == "evaluate":
            reply = site.evaluate(request)
        elif stored is not None:
            reply = stored
        else:
            reply = self._train(request, content, site)
        leaving = self._at_gate(lambda: self._gate.release(request, reply, site.layout))
        record.note(
            Answer(
                request.phase,
                len(content),
                len(encode_frame(leaving)),
                request.header.round,
                request.evaluated or request.split,
                leaving.examples,
                leaving.metrics,
            )
        )
        return leaving

    def _reply_to_stage(self, request: StageRequest, proposal: Proposal, content: bytes) -> StageReply:
        run, number = request.header.run, request.header.round
        site = self._warm.open(run, proposal, self._registry.states(run))
        self._at_gate(lambda: self._gate.admit_stage(request, proposal, site.layout, content))
        terms = SumTerms(
            partial(plan_agreed_session, run, proposal, site.layout),
            partial(weigh_site, weights=proposal.federation.weights, weight_cap=proposal.federation.weight_cap),
            count_agreed_min_sites(proposal),
        )

        def release(received: Vector, trained: Vector) -> Vector:
            examples = len(site.data.train)
            return self._at_gate(lambda: self._gate.mask(request, received, trained, examples, site.layout))

        reply = answer_stage(request, site, self._open_rounds(run), terms, release)
        leaving = encode_frame(reply)
        self._at_gate(lambda: self._gate.release_stage(request, leaving))
        self._registry.record(run).note(Answer(request.stage, len(content), len(leaving), number))
        return reply

    def _open_rounds(self, run: str) -> SecureRounds:
        """Return the site's part in the secure aggregation of a run.

        Raises:
            MessageRefusedError: if the site has no certificate.
        """
        if self._secure is None or self._secure[0] != run:
            self._secure = (
                run,
                SecureRounds(self._settings.site, self._require_credentials, masked=self._gate.secure_rounds(run)),
            )
        return self._secure[1]

    def _require_credentials(self) -> Credentials:
        """Read the site's credentials, because they may have been renewed meanwhile."""
        credentials = self._credentials()
        if credentials is None:
            raise MessageRefusedError("this site has no certificate, which secure aggregation needs")
        return credentials

    def _require_secure_aggregation(self, run: str, proposal: Proposal, layout: PayloadLayout, examples: int) -> None:
        """Raise unless the site can take part in the sums of a run; checked now, and not only after the first training.

        Raises:
            MessageRefusedError, InputRefusedError: naming the obstacle.
        """
        if problems := check_sites(proposal.federation, proposal.sites):
            raise InputRefusedError(problems)
        session = plan_agreed_session(run, proposal, layout, 1, "")
        if self._settings.site not in proposal.sites:
            raise MessageRefusedError("this site is not among the sites of the proposed run")
        if proposal.federation.weights == "examples" and examples > session.encoding.heaviest:
            raise MessageRefusedError(
                f"a site with more than {session.encoding.heaviest} images cannot be given a weight"
            )
        self._require_credentials()

    def _train(self, request: RoundRequest, content: bytes, site: Site) -> RoundReply:
        self._finished = None
        _log.info("round %d of %s: training begins", request.header.round, request.header.run)
        if site.secure_aggregation:
            self._open_rounds(request.header.run).begin(request)
        reply = site.train(request, charge=partial(self._charge, request))
        self._finished = _Finished(hashlib.sha256(content).digest(), reply)
        return reply

    def _charge(self, request: RoundRequest, cost: RoundCost) -> None:
        self._at_gate(lambda: self._gate.charge(request, cost))

    def _load_reply(self, request: RoundRequest, content: bytes, site: Site) -> RoundReply | None:
        """Return the reply to an identical earlier request, if the site's state is still the one after that round."""
        finished = self._finished
        if finished is None or finished.request != hashlib.sha256(content).digest():
            return None
        state = site.state
        return finished.reply if state is not None and state.round == request.header.round else None

    def _require_free(self, run: str) -> None:
        """Raise MessageRefusedError if another run holds the worker; the message does not name that run."""
        hold = self._hold
        if hold is not None and hold.run != run and not self._is_over(hold):
            raise MessageRefusedError(
                "the site serves another run and takes one at a time; it is free when that is over, or "
                f"{self._settings.worker.hold_minutes:g} minutes after its last message"
            )

    def _take_hold(self, run: str, round_number: int | None) -> None:
        """Assign the worker to a run; see `_require_free`."""
        with self._hold_lock:
            self._require_free(run)
            self._hold = _Hold(run, round_number, self._clock())
            self._last_message = self._hold.at

    def _let_go(self, run: str) -> None:
        """Release the worker from a run, so that another run can take it immediately."""
        with self._hold_lock:
            if self._hold is not None and self._hold.run == run:
                self._hold = None

    def _is_over(self, hold: _Hold) -> bool:
        return self._busy == "idle" and self._clock() - hold.at > 60 * self._settings.worker.hold_minutes

    def _in_turn(self, activity: Activity, run: str, work: Callable[[], _Made]) -> _Made:
        """Run a task in the working thread, and wait for its result."""
        done: Future[_Made] = Future()

        def task() -> None:
            self._busy = activity
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
                self._end(run)
                done.set_exception(error)
            else:
                self._end(run)
                done.set_result(result)

        self._tasks.put(task)
        return done.result()

    def _end(self, run: str) -> None:
        with self._hold_lock:
            self._busy = "idle"
            if self._hold is not None and self._hold.run == run:
                self._hold.at = self._clock()

    def _work(self) -> None:
        while True:
            self._tasks.get()()

    @staticmethod
    def _at_gate(pass_through: Callable[[], _Made]) -> _Made:
        try:
            return pass_through()
        except (MessageRefusedError, PayloadMismatchError) as refusal:
            raise _TurnedAwayError(str(refusal)) from refusal

    def _decline(self, error: Exception, kind: str, content: bytes) -> Refusal:
        refusal = explain(error)
        if refusal.failed or isinstance(error, InputRefusedError):
            _log.error("failed on a %s message", kind, exc_info=error)
        else:
            _log.warning("declined a %s message: %s", kind, refusal.reason)
        if not isinstance(error, _TurnedAwayError):
            try:
                self._gate.refused("in", kind, refusal.reason, content)
            except (MessageRefusedError, OSError):
                _log.exception("a refusal could not be recorded")
        return refusal
