"""One line of the ledger: a message that passed the site's gate or was refused, with the hash of the line before.

A line is one JSON object with exactly these fields in this order; the last field is the signature of all others. The
serialization of an entry is unique, so the SHA-256 that the next line contains as `previous` is that of the bytes in
the file.

Signatures are ECDSA on P-384 with SHA-256, by the site's key. They prove that the holder of that key wrote the line.
They do not prove that its content is true.
"""

import base64
import hashlib
from datetime import UTC, datetime
from typing import Annotated, Literal, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ConfigDict, Field, ValidationError

from ept_fed.config.base import Digest, Settings

__all__ = [
    "FIRST",
    "NOTHING",
    "TIME_FORMAT",
    "Decision",
    "Direction",
    "Entry",
    "Flow",
    "Signed",
    "Tip",
    "Totals",
    "hash_line",
    "parse_entry",
    "parse_tip",
    "sign_entry",
]

Decision = Literal["passed", "clipped", "refused", "noted"]
Direction = Literal["in", "out", "site"]

FIRST = "0" * 64
_ALGORITHM = ec.ECDSA(hashes.SHA256())


class _Strict(Settings):
    """Base class with strict types: a number given as text is refused, because the ledger never writes one so."""

    model_config = ConfigDict(strict=True, populate_by_name=True, serialize_by_alias=True)


class Flow(_Strict):
    """Totals of one direction: number of passed messages, their bytes, and number of refused messages."""

    messages: Annotated[int, Field(ge=0)] = 0
    bytes: Annotated[int, Field(ge=0)] = 0
    refused: Annotated[int, Field(ge=0)] = 0

    def plus(self, decision: Decision, size: int) -> "Flow":
        """Return the flow with one more message."""
        if decision == "refused":
            return Flow(messages=self.messages, bytes=self.bytes, refused=self.refused + 1)
        return Flow(messages=self.messages + 1, bytes=self.bytes + size, refused=self.refused)


class Totals(_Strict):
    """Totals of both directions since the ledger began."""

    received: Flow = Flow()
    sent: Flow = Flow()

    def plus(self, direction: Direction, decision: Decision, size: int) -> "Totals":
        """Return the totals after one more entry; the site's own notes count for neither direction."""
        if direction == "in":
            return Totals(received=self.received.plus(decision, size), sent=self.sent)
        if direction == "out":
            return Totals(received=self.received, sent=self.sent.plus(decision, size))
        return self


NOTHING = Totals()


TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


class Signed(_Strict):
    """Base class of records whose last field is a signature over all fields before it."""

    signature: str = ""

    @property
    def content(self) -> bytes:
        """The bytes that the signature covers."""
        return self.model_dump_json(exclude={"signature"}).encode()

    @property
    def line(self) -> bytes:
        """The bytes in the file, without the line end."""
        return self.content[:-1] + b',"signature":"' + self.signature.encode() + b'"}'

    def is_signed_by(self, key: ec.EllipticCurvePublicKey) -> bool:
        """Return whether the signature was made with this key."""
        try:
            key.verify(base64.b64decode(self.signature, validate=True), self.content, _ALGORITHM)
        except (InvalidSignature, ValueError):
            return False
        return True


SignedT = TypeVar("SignedT", bound=Signed)


class Entry(Signed):
    """One message in or out, or a note of the site's own.

    Attributes:
        schema_version: version of this format, serialized as `schema`.
        ledger: a random name that all entries of one ledger share.
        sequence: 1, 2, 3, …
        time: UTC, to the microsecond, by the site's clock.
        direction: in, out, or site for the worker's own notes.
        kind: introduce, introduction, train, evaluate, stages of secure aggregation; opened, recovered or charged for
            notes.
        run: name of the message's run.
        round: number of the round.
        split: split of an evaluation, and the round of the prompts if it is not `round`.
        tensors: names and shapes of the message's tensors.
        metrics: names of the metrics that have a value.
        images: the number of images that the message states.
        bytes: size of the frame.
        sha256: SHA-256 of the frame.
        policy: digest of the policy in force.
        decision: passed, clipped (and then passed), refused or noted.
        rule: the policy's setting that refused or altered the message.
        reason: the decision and its reason, for people at the site.
        about: digests of proposal, payload and backbone; the splits that a budget requires; the public key; the remains
            of an interrupted write.
        totals: totals of both directions, including this entry.
        key: fingerprint of the signing key.
        previous: SHA-256 of the line before; 64 zeros before the first.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    ledger: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    sequence: Annotated[int, Field(ge=1)]
    time: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")]
    direction: Direction
    kind: str
    run: str | None
    round: int | None
    split: str | None
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    metrics: tuple[str, ...]
    images: int | None
    bytes: Annotated[int, Field(ge=0)]
    sha256: Digest | None
    policy: Digest | None
    decision: Decision
    rule: str
    reason: str
    about: dict[str, str]
    totals: Totals
    key: Digest
    previous: Digest

    @property
    def at(self) -> datetime:
        """`time` as a point in time."""
        return datetime.strptime(self.time, TIME_FORMAT).replace(tzinfo=UTC)


class Tip(Signed):
    """The end of the ledger, kept in a separate file, so that a cut of the last entries is detected."""

    schema_version: Literal[1] = Field(1, alias="schema")
    ledger: str
    sequence: Annotated[int, Field(ge=1)]
    last: Digest


def hash_line(line: bytes) -> str:
    """Return the SHA-256, in hex, of a line without its line end."""
    return hashlib.sha256(line).hexdigest()


def sign_entry(unsigned: SignedT, key: ec.EllipticCurvePrivateKey) -> SignedT:
    """Return an entry or tip with the signature of its content."""
    signature = base64.b64encode(key.sign(unsigned.content, _ALGORITHM)).decode()
    return unsigned.model_copy(update={"signature": signature})


def parse_entry(line: bytes) -> Entry | None:
    """Return the entry of a line without its line end; None if `Entry.line` would not serialize to the same bytes."""
    return _parse(Entry, line)


def parse_tip(content: bytes) -> Tip | None:
    """Return the tip in a file's content; None if the content is not a tip."""
    return _parse(Tip, content.rstrip(b" \n"))


def _parse(kind: type[SignedT], line: bytes) -> SignedT | None:
    try:
        found = kind.model_validate_json(line)
    except ValidationError:
        return None
    return found if found.line == line else None
