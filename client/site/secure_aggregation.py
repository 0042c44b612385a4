"""A site's part in the secure aggregation of a run: its update leaves masked, once a round, or not at all."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from client.site.site import Site
from ept_fed.privacy.secure_aggregation.messages import Kind
from ept_fed.privacy.secure_aggregation.round_session import count_min_sites, digest_start, plan_session
from ept_fed.privacy.secure_aggregation.session import AggregationSession
from ept_fed.privacy.secure_aggregation.site import SecureAggregationSite
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import MessageRefusedError, RoundRequest
from ept_fed.protocol.proposal import Proposal
from ept_fed.protocol.stages import StageReply, StageRequest

__all__ = ["Credentials", "SecureRounds", "SumTerms", "answer_stage", "count_agreed_min_sites", "plan_agreed_session"]

_Release = Callable[[Vector, Vector], Vector]


@dataclass(frozen=True)
class Credentials:
    """What a site signs with, and whom it believes: keys/site.key, tls/site.crt and tls/ca.crt of its kit."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    authority: x509.Certificate


class SecureRounds:
    """Answers the stages of one run's rounds, one session at a time.

    Keys and seeds of a session, and what its round began with, live in memory: a site that is started anew in the
    middle of one has dropped out of it.

    Attributes:
        began: the last round that was trained, and the train request's payload and settings; None before the first.
        masked: the last round whose update was made to leave under secure aggregation, 0 before the first. No update of
            that round,
            or one before it, is made again: two sums of one round would differ by single sites, and two draws of
            noise on one update by less noise.
    """

    def __init__(self, site: str, credentials: Callable[[], Credentials], *, masked: int = 0) -> None:
        """Take the site's certified name, how to read its credentials, and what an earlier process says of `masked`."""
        self.masked = masked
        self.began: tuple[int, Vector, str] | None = None
        self._site, self._credentials = site, credentials
        self._open: tuple[AggregationSession, SecureAggregationSite] | None = None

    def begin(self, request: RoundRequest) -> None:
        """Remember what a round begins with: the sum is of sites that began with the same."""
        self.began = request.header.round, request.payload, request.settings

    def require_begun(self, number: int) -> tuple[int, Vector, str]:
        """Return a round's number, and the payload (n,) and settings that it began with.

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
            request: whose header the site has found to be its own.
            open_session: from a round and the digest of what it began with to its session, as the site agreed to it.
            update: called when it is due: the payload (n,) after training that round, and the site's weight.

        Raises:
            MessageRefusedError: for a stage out of turn, a second time, or what the server made up; the site takes no
                further part in that round.
            PayloadMismatchError: for an update that cannot be summed.
            InputRefusedError: if this site is none of the session's.
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
            # Before the update is made: noise that was drawn once is not drawn again because something refused it.
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
    """What the sites agreed on about the sums of a run.

    Attributes:
        open_session: from a round and the digest of its start to its session.
        weigh: from a site's number of training images to its weight.
        minimum: number of sites that a sum is of, at least.
    """

    open_session: Callable[[int, str], AggregationSession]
    weigh: Callable[[int], int]
    minimum: int


def answer_stage(
    request: StageRequest,
    site: Site,
    rounds: SecureRounds,
    terms: SumTerms,
    release: _Release = lambda _received, trained: trained,
) -> StageReply:
    """Return a site's part of a stage, the same way in simulations and in deployments.

    Args:
        request: whose round the site has trained.
        site: whose update is summed.
        rounds: the site's part in the secure aggregation of this run.
        terms: of the sums.
        release: from the payloads (n,) before and after training to the one that may leave, masked: the site's gate.

    Raises:
        MessageRefusedError, PayloadMismatchError, InputRefusedError: see `SecureRounds.answer`.
    """
    site.require_header(request.header)

    def update() -> tuple[Vector, int]:
        number, received, _ = rounds.require_begun(request.header.round)
        trained = site.masked_payload(number, received, minimum=terms.minimum)
        return release(received, trained), terms.weigh(len(site.data.train))

    return rounds.answer(request, terms.open_session, update)


def count_agreed_min_sites(proposal: Proposal) -> int:
    """Return how many sites a sum of this run is of, at least."""
    secure = proposal.federation.secure_aggregation
    return count_min_sites(len(proposal.sites), None if secure is None else secure.threshold)


def plan_agreed_session(
    run: str, proposal: Proposal, layout: PayloadLayout, round_number: int, start: str
) -> AggregationSession:
    """Return the secure aggregation of a round as this site agreed to it.

    Args:
        run: identity of the run.
        proposal: that the site agreed to.
        layout: of the payload.
        round_number: the round.
        start: `digest_start` of what it began with.

    Raises:
        MessageRefusedError: if the run has none.
        InputRefusedError: if it has too few sites for it.
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
