"""One secure aggregation: who may take part, how many must stay, and what is summed, as both sides must agree on it.

The protocol is that of Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning"
(CCS), with double masking and in its variant against an active server: keys are signed, and the sites sign whose sum it
will be before they help to unmask it. The server learns the sum, the sum of weights and who took part.

What it does not protect against:

* collusion: with `threshold` sites the server can unmask every other one; 2·threshold - S of S sites suffice if it also
  tells some of the rest other survivors than the others; and all sites but one know that one's part of any sum;
* the choice of who takes part: the server may leave sites out as if they had dropped out, down to the threshold;
* the sum itself: it is exact and without noise, and few sites with known parts say much about the rest;
* two sums of one round: they differ by the values of the sites that only one holds. Whoever carries this must not give
  a second masked input for the same round once the first may have been unmasked;
* poisoned updates: nobody sees one alone, so nothing compares lengths; each site's own gate bounds what it masks;
* whoever holds the authority's key, who can certify sites that do not exist and take their part;
* a revoked certificate before its end, which the server lets in: sites know no revocations;
* a site that ends rounds by malformed shares: it is named where it can be, and the round yields nothing.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.privacy.secure_aggregation.fixed_point import FixedPoint

__all__ = ["MIN_SITES", "VERSION", "AggregationAbandonedError", "AggregationSession", "default_threshold", "serialize"]

VERSION = 1
MIN_SITES = 3  # of two, each would know the other's part of the sum
_MAX_SITES = 1000
_LABEL = "ept-fed secure aggregation"


class AggregationAbandonedError(RuntimeError):
    """The sum cannot be had: too few sites are left, or what they sent gives none. The round is skipped or repeated."""


@dataclass(frozen=True)
class AggregationSession:
    """What a site takes from its own agreement with the consortium, never from a message of this protocol.

    Attributes:
        run, round: which round this is.
        attempt: counts repetitions of the round, from 1; runs make one attempt at each.
        sites: certified names of all that may take part, sorted.
        threshold: how many sites must stay to the end; more than half of all.
        start: digest of what the round began with, prompts and settings. A server that gives sites different prompts
            could know in advance what all but one of them train (Pasquini et al. 2022, "Eluding Secure Aggregation in
            Federated Learning via Model Inconsistency", CCS); their sessions then differ, and none of them is answered.
        layout_hash: of the vector.
        size: numbers in the vector.
        encoding: how they become integers.

    Raises:
        InputRefusedError: naming everything that is impossible.
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
        """How many sites a sum is of, at least."""
        return max(MIN_SITES, self.threshold)

    @property
    def words(self) -> int:
        """Words of a masked input: the numbers and the weight."""
        return self.size + 1

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of everything above; messages of two sessions are told apart by it."""
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
        """Return what a key or signature is for: version, run, round, this session, purpose and sites."""
        return serialize(_LABEL, VERSION, self.run, self.round, self.digest, purpose, *names)

    def point(self, site: str) -> int:
        """Return at which point of the field a site's shares lie."""
        return self.sites.index(site) + 1


def default_threshold(sites: int) -> int:
    """Return two thirds, rounded up: a third may drop out, and fewer than a third may be in league with the server."""
    return -(-2 * sites // 3)


def serialize(*parts: str | int | bytes) -> bytes:
    """Return bytes that no other parts give: each part with its type and length before it."""
    serialized = b""
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        serialized += type(part).__name__[:1].encode() + len(content).to_bytes(4, "big") + content
    return serialized
