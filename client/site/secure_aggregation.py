"""A site's part in the secure aggregation of a run: its update leaves masked, and at most once per round."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ept_fed.privacy.secure_aggregation.messages import Kind
from ept_fed.privacy.secure_aggregation.round_session import count_min_sites, digest_start, plan_session, weigh_site
from ept_fed.privacy.secure_aggregation.session import AggregationSession
from ept_fed.privacy.secure_aggregation.site import SecureAggregationSite
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import MessageRefusedError, RoundRequest
from ept_fed.protocol.proposal import Proposal
from ept_fed.protocol.stage_messages import StageReply, StageRequest

__all__ = ["Credentials", "SecureRounds", "SumTerms", "agree_on_sums", "plan_agreed_session"]


@dataclass(frozen=True)
class Credentials:
    """The site's key, its certificate and the authority: keys/site.key, tls/site.crt and tls/ca.crt of its kit."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    authority: x509.Certificate


class SecureRounds:
    """Answers the stages of one run's rounds, one session at a time.

    Keys and seeds of a session, and the start of its round, are in memory only: a site that is restarted during a
    session has dropped out of it.

    Attributes:
        began: the last trained round, with payload and settings of its train request; None before the first.
        masked: the last round whose update was made to leave under secure aggregation; 0 before the first. No update of
            that round or an earlier one is made again: the difference of two sums of one round would reveal single
            sites, and two draws of noise on one update would hide it less.
    """

    def __init__(self, site: str, credentials: Callable[[], Credentials], *, masked: int = 0) -> None:
        """Take the site's certified name, a reader of its credentials, and `masked` of an earlier process."""
        self.masked = masked
        self.began: tuple[int, Vector, str] | None = None
        self._site, self._credentials = site, credentials
        self._open: tuple[AggregationSession, SecureAggregationSite] | None = None

    def begin(self, request: RoundRequest) -> None:
        """Store the start of a round; only sites with the same start are summed."""
        self.began = request.header.round, request.payload, request.training.model_dump_json()

    def require_begun(self, number: int) -> tuple[int, Vector, str]:
        """Return the round's number, and the payload (n,) and settings at its start.

        Raises:
            MessageRefusedError: if this is not the round trained last.
        """
        if self.began is None or self.began[0] != number:
            raise MessageRefusedError(f"this site has not trained round {number} since it was started")
        return self.began

    def answer(
        self,
        request: StageRequest,
        open_session: Callable[[int, str], AggregationSession],
        update: Callable[[], tuple[Vector, int]],
    ) -> StageReply:
        """Return the site's part of a stage.

        Args:
            request: a request whose header the site has checked.
            open_session: opens the session that the site agreed to, from a round and the digest of its start.
            update: called when the update is needed; returns the payload (n,) after training that round, and the
                site's weight.

        Raises:
            MessageRefusedError: for a stage out of order or a second time, or for invalid content; the site takes no
                further part in that round.
            PayloadMismatchError: for an update that cannot be summed.
            InputRefusedError: if this site is not part of the session.
        """
        number, received, settings = self.require_begun(request.header.round)
        session = open_session(number, digest_start(received, settings))
        if request.stage in ("advertisement", "masked input") and session.round <= self.masked:
            raise MessageRefusedError(f"this site gave its part of round {self.masked} and gives none again")
        if request.stage == "advertisement":
            self._open = session, self._join(session)
        if self._open is None or self._open[0] != session:
            raise MessageRefusedError("no secure aggregation of this round is open at this site")
        member = self._open[1]
        if request.stage == "advertisement":
            content = member.advertise()
        elif request.stage == "shares":
            content = member.share_keys(request.content)
        elif request.stage == "masked input":
            member.require(Kind.MASKED_INPUT)
            # Set before the update is made, so that noise is not drawn a second time after a refusal.
            self.masked = session.round
            values, weight = update()
            content = member.mask_input(request.content, values, weight)
        elif request.stage == "confirmation":
            content = member.confirm(request.content)
        else:
            content = member.unmask(request.content)
            self._open = None
        return StageReply(request.header, request.stage, content)

    def _join(self, session: AggregationSession) -> SecureAggregationSite:
        held = self._credentials()
        return SecureAggregationSite(
            session,
            self._site,
            key=held.key,
            certificate=held.certificate,
            authority=held.authority,
            now=datetime.now(UTC),
        )


@dataclass(frozen=True)
class SumTerms:
    """The terms that the sites agreed on for the sums of a run.

    Attributes:
        open_session: opens the session of a round, from its number and the digest of its start.
        weigh: returns a site's weight for its number of training images.
        minimum: minimum number of sites in a sum.
    """

    open_session: Callable[[int, str], AggregationSession]
    weigh: Callable[[int], int]
    minimum: int


def agree_on_sums(run: str, proposal: Proposal, layout: PayloadLayout) -> SumTerms:
    """Return the terms of the sums in a run, as the site agreed to them."""
    federation, secure = proposal.federation, proposal.federation.secure_aggregation
    return SumTerms(
        partial(plan_agreed_session, run, proposal, layout),
        partial(weigh_site, weights=federation.weights, weight_cap=federation.weight_cap),
        count_min_sites(len(proposal.sites), None if secure is None else secure.threshold),
    )


def plan_agreed_session(
    run: str, proposal: Proposal, layout: PayloadLayout, round_number: int, start: str
) -> AggregationSession:
    """Return the session of a round's secure aggregation, as this site agreed to it.

    Args:
        run: identity of the run.
        proposal: the proposal that the site agreed to.
        layout: layout of the payload.
        round_number: number of the round.
        start: `digest_start` of the round's payload and settings.

    Raises:
        MessageRefusedError: if the run has no secure aggregation.
        InputRefusedError: if the run has too few sites for it.
    """
    federation = proposal.federation
    if federation.secure_aggregation is None:
        raise MessageRefusedError("the updates of this run leave in plaintext")
    return plan_session(
        run=run,
        round_number=round_number,
        start=start,
        sites=proposal.sites,
        threshold=federation.secure_aggregation.threshold,
        layout=layout,
        weights=federation.weights,
        weight_cap=federation.weight_cap,
    )
