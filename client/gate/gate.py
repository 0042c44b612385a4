"""The gate: it checks every message to and from this site against the site's policy, and records it.

It runs in the site's worker, which the hospital installed itself; no message of a server can switch it off. It fails
closed: a message that cannot be checked or recorded does not pass. A server learns only the names of the rules that it
violated; the values and the fixes stay in the site's log and ledger.
"""

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from client.gate.agreed_settings import require_agreed
from client.gate.decisions import Decisions
from client.gate.dp_rules import check_clip, describe_noise
from client.gate.incoming import (
    check_backbone,
    check_change,
    check_name,
    check_proposal,
    check_request,
    check_splits,
    request_key,
    splits_of,
)
from client.gate.interface import Direction
from client.gate.ledger_records import name_tensors, record_charge, record_release, record_request, record_stage
from client.gate.outgoing import check_introduction, check_reply
from client.gate.policy import Policy
from client.gate.privacy_budget import BudgetBrokenError, BudgetLedger, OverspentError
from client.gate.repetition import check_repetition
from client.gate.run_history import SEED, SPLITS, KnownRun, PromptStore, load_runs, pinned_backbone, pinned_splits
from client.gate.secure_aggregation import (
    check_secure_request,
    check_stage,
    check_update,
    describe_secure_aggregation,
)
from client.gate.violations import PolicyViolation
from client.ledger.ledger import Ledger, Record
from client.site.privacy_plan import RoundCost
from ept_fed.protocol.frames import encode_frame
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import MessageRefusedError, RoundReply, RoundRequest, Split, clean_text
from ept_fed.protocol.proposal import Proposal, SiteIntroduction
from ept_fed.protocol.stage_messages import StageRequest

__all__ = ["Gate"]

_AGREEMENT = "protocol.agreement"


class Gate:
    """The gate of one site, see `client.gate.interface`. A lock makes threads pass one message at a time."""

    def __init__(
        self,
        policy: Policy,
        ledger: Ledger,
        prompts: PromptStore,
        budget: BudgetLedger,
        *,
        site: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take policy, open ledger and budget, and load earlier agreements and accepted requests from the ledger."""
        self._clock = clock
        self._policy, self._prompts, self._budget, self._site = policy, prompts, budget, site
        self._decisions = Decisions(ledger, policy.digest)
        self._runs = load_runs(ledger.history)
        self._pinned = pinned_backbone(ledger.history)
        self._splits = pinned_splits(ledger.history)
        self._proposals: dict[str, Proposal] = {}
        self._masking: Record | None = None
        self._turn = threading.Lock()

    def admit_proposal(self, run: str, proposal: Proposal, frame: bytes) -> None:
        """Accept a proposal.

        Raises:
            PolicyViolationError: with the names of the violated rules.
            OSError: if it cannot be recorded, and so does not pass.
        """
        with self._turn:
            violations = check_name(run) + check_proposal(self._policy, proposal, self._runs.get(run))
            violations += check_splits(self._policy, proposal, self._splits)
            secure = proposal.federation.secure_aggregation is not None
            about = {"proposal": proposal.digest, SEED: str(proposal.seed)}
            about |= describe_secure_aggregation(proposal) if secure else {}
            about |= describe_noise(proposal.federation.site_privacy)
            violations += check_repetition(self._policy, run, proposal, self._runs, self._clock())
            record = Record("in", "introduce", "passed", run=clean_text(run, 64), about=about)
            self._decisions.settle(record, frame, violations)
            self._runs.setdefault(run, KnownRun.agree(about))
            self._proposals[run] = proposal

    def release_introduction(
        self,
        run: str,
        introduction: SiteIntroduction,
        frame: bytes,
        *,
        counts: Mapping[Split, int],
    ) -> None:
        """Release the answer to a proposal.

        Args:
            run: name of the proposed run.
            introduction: the answer.
            frame: bytes of the answer.
            counts: images per split; needed because a train reply does not contain the number of validation images.

        Raises:
            PolicyViolationError: with the names of the violated rules.
            OSError: if it cannot be recorded, and so does not pass.
        """
        with self._turn:
            known, proposal = self._runs.get(run), self._proposals.get(run)
            about = {"backbone": introduction.backbone_digest, "layout": introduction.layout.hash}
            if known is None or proposal is None:
                violations = [PolicyViolation("protocol.run", run, "no proposal of this run was accepted")]
            else:
                violations = check_introduction(
                    self._policy, introduction, proposal, site=self._site, run=run, pinned=self._pinned
                )
                if known.backbone is not None and (known.backbone, known.layout) != tuple(about.values()):
                    fix = "the site introduced itself with other values before; a new run is needed"
                    violations.append(PolicyViolation("protocol.run", "backbone or layout", fix))
            record = Record(
                "out",
                "introduction",
                "passed",
                run=run,
                tensors=introduction.layout.shapes,
                images=introduction.examples,
                about=about
                | {"validation_images": str(counts["validation"])}
                | ({} if proposal is None else self._pin_splits(proposal)),
            )
            self._decisions.settle(record, frame, violations)
            self._splits = record.about.get(SPLITS, self._splits)
            self._runs[run].introduce(record.about)
            self._pinned = self._pinned or introduction.backbone_digest
            if self._prompts.latest(run, introduction.layout) is None:
                self._prompts.keep(run, introduction.layout, 0, introduction.initial)

    def admit(self, request: RoundRequest, proposal: Proposal, layout: PayloadLayout, frame: bytes) -> None:
        """Accept a train or evaluate request, if the current policy would still accept the run.

        Args:
            request: the received request.
            proposal: the proposal that the site agreed to for this run.
            layout: the layout that the site made.
            frame: bytes of the request.

        Raises:
            PolicyViolationError: with the names of the violated rules.
            MessageRefusedError: if it does not match the proposal.
            OSError: if it cannot be recorded, and so does not pass.
        """
        with self._turn:
            run, sha256 = request.header.run, hashlib.sha256(frame).hexdigest()
            known = self._runs.get(run)
            violations = check_request(self._policy, request, layout, known, sha256)
            if known is not None and known.secure:
                violations += check_secure_request(request, known)
            violations += self._check_agreement(request.header.run, proposal, layout)
            latest = None
            if known is not None and not violations:
                latest = self._prompts.latest(run, layout)
                before = None if latest is None else latest[1]
                violations = check_change(self._policy, request, before, layout, known, sha256)
            tensors = name_tensors(layout, "correction" if request.correction is not None else None)
            record = dataclasses.replace(
                record_request(request, "in"), tensors=tensors, about=self._pin_splits(proposal)
            )
            if not violations:
                self._require_agreed(request, proposal, record, frame)
            self._decisions.settle(record, frame, violations)
            self._splits = record.about.get(SPLITS, self._splits)
            self._runs[run].accept(request_key(request), sha256)
            if latest is None or request.payload_round >= latest[0]:
                self._prompts.keep(run, layout, request.payload_round, request.payload)

    def charge(self, request: RoundRequest, cost: RoundCost) -> None:
        """Write down the cost of a private round, if the site's budget is sufficient.

        Raises:
            PolicyViolationError: naming outgoing.budget; the budget's size and the amount spent stay at the site.
            OSError: if it cannot be written; the round must not happen then.
        """
        with self._turn:
            limit = self._policy.outgoing.budget
            try:
                self._budget.charge(
                    request.header.run,
                    request.header.round,
                    cost,
                    delta=cost.delta if limit is None else limit.delta,
                    epsilon=None if limit is None else limit.epsilon,
                )
            except (OverspentError, BudgetBrokenError) as error:
                fix = "stop the worker and inspect the file; no private round is trained until it is complete"
                if isinstance(error, OverspentError):
                    fix = "the budget is exhausted; raise outgoing.budget if more may be revealed about the images"
                violations = [PolicyViolation("outgoing.budget", str(error), fix)]
                self._decisions.refuse(record_request(request, "in"), b"", violations)
            self._decisions.append(record_charge(request, self._budget.end), b"")

    def release(self, request: RoundRequest, reply: RoundReply, layout: PayloadLayout) -> RoundReply:
        """Return the reply that may leave: metrics rounded or withheld, the update clipped if the policy requires it.

        Raises:
            PolicyViolationError: with the names of the violated rules.
            OSError: if it cannot be recorded, and so does not pass.
        """
        with self._turn:
            known = self._runs.get(request.header.run, KnownRun(proposal=""))
            released, violations = check_reply(self._policy, request, reply, layout, known)
            record = record_request(request, "out")
            if released is None:
                self._decisions.refuse(record, b"", violations)
            leaving = released.reply
            self._decisions.append(record_release(record, released, layout), encode_frame(leaving))
            if leaving.payload is not None:
                known.leave(self._clock())
            return leaving

    def admit_stage(self, request: StageRequest, proposal: Proposal, layout: PayloadLayout, frame: bytes) -> None:
        """Accept the request for a stage of secure aggregation; arguments and refusals as for `admit`."""
        with self._turn:
            known = self._runs.get(request.header.run)
            violations = check_stage(self._policy, request, layout, known)
            violations += self._check_agreement(request.header.run, proposal, layout)
            self._decisions.settle(record_stage(request, "in"), frame, violations)

    def mask(
        self, request: StageRequest, received: Vector, trained: Vector, examples: int, layout: PayloadLayout
    ) -> Vector:
        """Return the update that may be masked, scaled down if the policy requires it; refusals as for `release`.

        Args:
            request: the request for the masked input.
            received: the payload that the round began with.
            trained: the payload after the round.
            examples: number of training images that it was trained on.
            layout: the layout that the site made.
        """
        with self._turn:
            known = self._runs.get(request.header.run, KnownRun(proposal=""))
            leaving, clipped, violations = check_update(self._policy, received, trained, examples, layout, known)
            record = record_stage(request, "out")
            if violations:
                self._decisions.refuse(record, b"", violations)
            self._masking = dataclasses.replace(
                record,
                tensors=layout.shapes,
                images=examples,
                decision="clipped" if clipped else "passed",
                rule="outgoing.update" if clipped else "",
                reason=clipped,
            )
            return leaving

    def release_stage(self, request: StageRequest, frame: bytes) -> None:
        """Release a site's part of a stage.

        Raises:
            PolicyViolationError: for a masked input whose update did not pass `mask`.
            OSError: if it cannot be recorded, and so does not pass.
        """
        with self._turn:
            record, masking = record_stage(request, "out"), self._masking
            if request.stage == "masked input":
                if masking is None or (masking.run, masking.round) != (record.run, record.round):
                    fix = "the update was not checked before it was masked"
                    self._decisions.refuse(record, b"", [PolicyViolation("protocol.stage", request.stage, fix)])
                record, self._masking = masking, None
            self._decisions.append(record, frame)
            if request.stage == "masked input":
                names = (name for name, _ in record.tensors)
                self._runs[request.header.run].leave_masked(request.header.round, names, self._clock())

    def secure_rounds(self, run: str) -> int:
        """Return the last round of a run whose update left under secure aggregation; 0 if none did."""
        with self._turn:
            known = self._runs.get(run)
            return 0 if known is None else known.last_secure_round

    def refused(self, direction: Direction, kind: str, reason: str, frame: bytes) -> None:
        """Record a message that could not be read or answered; the worker has refused it already."""
        with self._turn:
            record = Record(direction, clean_text(kind, 40), "refused", rule="protocol", reason=clean_text(reason))
            self._decisions.append(record, frame)

    @property
    def ended(self) -> bool:
        """Whether nothing can be recorded any more; then no message may pass until the worker is restarted."""
        return self._decisions.ended

    def close(self) -> None:
        """Close the ledger."""
        self._decisions.close()

    def _check_agreement(self, run: str, proposal: Proposal, layout: PayloadLayout) -> list[PolicyViolation]:
        """Return the violations by a run that the site agreed to earlier, as the current policy and history have it."""
        known = self._runs.get(run)
        if known is None or known.backbone is None:
            return []
        violations = check_proposal(self._policy, proposal, known) + check_splits(self._policy, proposal, self._splits)
        violations += check_repetition(self._policy, run, proposal, self._runs, self._clock())
        violations += check_clip(self._policy, proposal.federation.site_privacy, layout)
        return violations + check_backbone(self._policy, known.backbone, self._pinned)

    def _require_agreed(self, request: RoundRequest, proposal: Proposal, record: Record, frame: bytes) -> None:
        """Raise unless a request matches the proposal; the text, which is sent, names the settings that differ."""
        try:
            require_agreed(request, proposal)
        except MessageRefusedError as refusal:
            self._decisions.append(
                dataclasses.replace(record, decision="refused", rule=_AGREEMENT, reason=clean_text(str(refusal))), frame
            )
            raise

    def _pin_splits(self, proposal: Proposal) -> dict[str, str]:
        """Return the `about` that pins the splits if this is the first message to pass under a budget; else nothing."""
        first = self._policy.outgoing.budget is not None and self._splits is None
        return {SPLITS: splits_of(proposal)} if first else {}
