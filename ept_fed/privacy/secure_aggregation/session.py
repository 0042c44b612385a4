"""One secure aggregation: its possible sites, its threshold and its vector, on which both sides must agree.

The protocol is that of Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning"
(CCS), with double masking, in the variant against an active server. Keys are signed, and the sites sign the list of
sites in the sum before they help to unmask it. The server learns the sum, the sum of weights and who took part.

The protocol does not protect against:

* collusion: the server and `threshold` sites can unmask every other site. If the server also names different survivors
  to different sites of the rest, 2·threshold - S of S sites suffice. All sites but one can compute that one's part of
  any sum;
* selection of sites: the server may exclude sites as if they had dropped out, down to the threshold;
* leakage by the sum itself: it is exact and without noise. If the sites are few and some parts are known, it reveals
  much about the rest;
* two sums of one round: they differ by the values of the sites that are in only one of them. The caller must not give a
  second masked input for the same round once the first may have been unmasked;
* poisoned updates: nobody sees a single update, so lengths cannot be compared. Each site's own gate bounds its input;
* a holder of the authority's key, who can certify sites that do not exist and act as them;
* a revoked certificate before its end date, if the server accepts it: sites have no list of revocations;
* a site that ends rounds by malformed shares: it is named where possible, and the round yields nothing.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.privacy.secure_aggregation.fixed_point import FixedPoint

__all__ = ["MIN_SITES", "VERSION", "AggregationAbandonedError", "AggregationSession", "default_threshold", "serialize"]

VERSION = 1
MIN_SITES = 3  # with two sites, each could compute the other's part of the sum
_MAX_SITES = 1000
_LABEL = "ept-fed secure aggregation"


class AggregationAbandonedError(RuntimeError):
    """No sum: too few sites are left, or their messages give no valid sum. The round is skipped or repeated."""


@dataclass(frozen=True)
class AggregationSession:
    """Parameters of a session; a site takes them from its own agreement, never from a message of this protocol.

    Attributes:
        run, round: identify the round.
        attempt: counts repetitions of the round, from 1; a run makes one attempt at each round.
        sites: certified names of all sites that may take part, sorted.
        threshold: number of sites that must stay to the end; more than half of all.
        start: digest of the prompts and settings at the start of the round. A server that sends different prompts to
            the sites could predict the updates of all but one of them (Pasquini et al. 2022, "Eluding Secure
            Aggregation in Federated Learning via Model Inconsistency", CCS). With different prompts the sessions of the
            sites differ, and no site answers messages of another session.
        layout_hash: hash of the vector's layout.
        size: count of numbers in the vector.
        encoding: encoding of the numbers as integers.

    Raises:
        InputRefusedError: naming every impossible value.
    """

    run: str
    round: int
    attempt: int
    sites: tuple[str, ...]
    threshold: int
    start: str
    layout_hash: str
    size: int
    encoding: FixedPoint

    def __post_init__(self) -> None:
        problems = [
            Problem(name, value, "must be a whole number, at least 1")
            for name, value in (("round", self.round), ("attempt", self.attempt), ("size", self.size))
            if type(value) is not int or value < 1
        ]
        count = len(self.sites)
        if list(self.sites) != sorted(set(self.sites)):
            problems.append(Problem("sites", ", ".join(self.sites), "must be distinct names, sorted"))
        if not MIN_SITES <= count <= _MAX_SITES:
            problems.append(Problem("sites", count, f"must be {MIN_SITES} to {_MAX_SITES} names"))
        if type(self.threshold) is not int or not count < 2 * self.threshold <= 2 * count:
            problems.append(Problem("threshold", self.threshold, f"must be more than half of {count} sites, or all"))
        if self.encoding.sites != count:
            problems.append(Problem("encoding.sites", self.encoding.sites, f"must be {count}, as many as take part"))
        if problems:
            raise InputRefusedError(problems)

    @property
    def minimum(self) -> int:
        """Minimum number of sites in a sum."""
        return max(MIN_SITES, self.threshold)

    @property
    def words(self) -> int:
        """Count of words in a masked input: the numbers and the weight."""
        return self.size + 1

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all attributes; it distinguishes messages of different sessions."""
        coding = self.encoding
        return hashlib.sha256(
            serialize(
                _LABEL,
                VERSION,
                self.run,
                self.round,
                self.attempt,
                self.threshold,
                self.start,
                self.layout_hash,
                self.size,
                coding.heaviest,
                coding.step.hex(),
                float(coding.bound).hex(),
                coding.bits,
                *self.sites,
            )
        ).digest()

    def bind(self, purpose: str, *names: str) -> bytes:
        """Return the bytes that bind a key or signature to version, run, round, this session, purpose and sites."""
        return serialize(_LABEL, VERSION, self.run, self.round, self.digest, purpose, *names)

    def point(self, site: str) -> int:
        """Return the point of the field that belongs to a site's shares."""
        return self.sites.index(site) + 1


def default_threshold(sites: int) -> int:
    """Return two thirds, rounded up: a third may drop out, and fewer than a third may collude with the server."""
    return -(-2 * sites // 3)


def serialize(*parts: str | int | bytes) -> bytes:
    """Return bytes that no other parts give: type and length precede each part."""
    serialized = b""
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        serialized += type(part).__name__[:1].encode() + len(content).to_bytes(4, "big") + content
    return serialized
