"""The site's worker: it keeps one site in memory and answers frames through the gate, one run at a time.

Not covered: everybody who can connect to its socket may send requests, within the limits of the gate. Everybody who can
read its memory or its state folder has the personalised head.
"""

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
from client.requests.answer_frame import answer_frame
from client.requests.introduce import introduce
from client.requests.respond import GateRefusedError, LastReply, SitePart, ask_gate, respond
from client.site.run_record import Answer
from client.site.run_registry import RunRegistry
from client.site.secure_aggregation import Credentials, SecureRounds, agree_on_sums, plan_agreed_session
from client.worker.site_cache import WarmSite
from client.worker.unix_sockets import Activity, WorkerStatus
from ept_fed.errors import InputRefusedError
from ept_fed.protocol.frames import Frame, Introduce, encode_frame, kind_of
from ept_fed.protocol.layout import PayloadLayout
from ept_fed.protocol.messages import MessageRefusedError, RoundReply, RoundRequest
from ept_fed.protocol.proposal import Proposal, SiteIntroduction
from ept_fed.protocol.stage_messages import StageReply, StageRequest
from ept_fed.validation.experiment import check_sites
from ept_fed.validation.load_site import SiteSettings

__all__ = ["Worker"]

_Made = TypeVar("_Made")

_log = logging.getLogger(__name__)


@dataclass
class _Hold:
    """The run that holds the worker, its last requested round, and the time of its last message."""

    run: str
    round: int | None
    at: float


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
        self._last = LastReply()
        self._started = clock()
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        Thread(target=self._work, name="train", daemon=True).start()

    def answer(self, content: bytes) -> bytes:
        """Return the answer to a frame, see `answer_frame`.

        A train request that was answered already gets the same reply again, without training.
        """
        return answer_frame(content, self._gate, lambda frame: self._answer(frame, content))

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
            ask_gate(self._gate.admit_proposal, frame.run, frame.proposal, content)
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
            raise MessageRefusedError(f"a site does not answer a frame of kind '{kind_of(frame)}'")
        run = frame.header.run
        proposal = self._registry.find(run)
        self._take_hold(run, frame.header.round)
        try:
            if isinstance(frame, StageRequest):
                return self._in_turn("secure aggregation", run, lambda: self._reply_to_stage(frame, proposal, content))
            reply = self._in_turn(frame.phase, run, lambda: self._reply(frame, proposal, content))
        except GateRefusedError:
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
        introduction = introduce(run, proposal, site, self._gate)
        self._registry.agree(run, proposal)
        self._registry.record(run).note(Answer("introduction", len(content), len(encode_frame(introduction))))
        return introduction

    def _reply(self, request: RoundRequest, proposal: Proposal, content: bytes) -> RoundReply:
        run = request.header.run
        reply = respond(request, content, self._open_part(run, proposal))
        sizes, told = (len(content), len(encode_frame(reply))), request.evaluated or request.split
        answer = Answer(request.phase, *sizes, request.header.round, told, reply.examples, reply.metrics)
        self._registry.record(run).note(answer)
        return reply

    def _reply_to_stage(self, request: StageRequest, proposal: Proposal, content: bytes) -> StageReply:
        run = request.header.run
        reply = respond(request, content, self._open_part(run, proposal))
        sizes = len(content), len(encode_frame(reply))
        self._registry.record(run).note(Answer(request.stage, *sizes, request.header.round))
        return reply

    def _open_part(self, run: str, proposal: Proposal) -> SitePart:
        site = self._warm.open(run, proposal, self._registry.states(run))
        data, record = self._warm.data.digest, self._registry.record(run)
        secure = proposal.federation.secure_aggregation is not None
        return SitePart(
            site,
            proposal,
            self._gate,
            rounds=partial(self._open_rounds, run) if secure else None,
            terms=agree_on_sums(run, proposal, site.layout) if secure else None,
            last=self._last,
            accept=lambda request: record.accept(request, data),
        )

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
