"""Packing the bytes of a frame into a Flower message, and reading them back; all communication uses this form.

Flower pushes and pulls every record, array and chunk of an array in a separate request, each with the node's key and
a signature. Therefore a frame is one record, and a large frame is split into records of PART_BYTES (a few megabytes).
A proxy accepts a request of this size, and a slow connection that breaks has to resend only one such part.
"""

from flwr.app import ConfigRecord, Error, Message, RecordDict

import ept_fed
from ept_fed.protocol.frame_prefix import PREFIX_BYTES, is_refusal, read_prefix
from ept_fed.protocol.messages import MessageRefusedError, clean_text, require_type

__all__ = [
    "PART_BYTES",
    "SITE_AWAY",
    "SITE_FAILED",
    "SITE_REFUSED",
    "decline",
    "encode_answer",
    "encode_frame_record",
    "read_frame_record",
]

PART_BYTES = 5_000_000
SITE_REFUSED, SITE_FAILED, SITE_AWAY = 101, 102, 103
_PART = "frame"
_OTHER_VERSION = f" (this is ept-fed {ept_fed.__version__}; is the other side of another version?)"
# Errors that SuperLink creates on behalf of a node (flwr.common.constant.ErrorCode).
_OF_SUPERLINK = {
    3: "did not answer in time",
    4: "did not answer in time",
    5: "its node went offline: SuperLink has received nothing from it for a minute",
}


def encode_frame_record(frame: bytes) -> RecordDict:
    """Return the bytes of a frame as the records of a message; each record except the last has PART_BYTES bytes."""
    parts = [frame[start : start + PART_BYTES] for start in _starts(len(frame))]
    return RecordDict({str(place): ConfigRecord({_PART: part}) for place, part in enumerate(parts)})


def encode_answer(frame: bytes, request: Message) -> Message:
    """Return a site's frame as the answer to a message; a refusal becomes a Flower error, which is no result.

    Raises:
        MessageRefusedError: for a frame that cannot be read.
    """
    if not is_refusal(frame):
        return Message(encode_frame_record(frame), reply_to=request)
    # Imported here because it is slow to import and seldom needed.
    from ept_fed.protocol.frames import Refusal, decode_frame

    refusal = decode_frame(frame)
    if not isinstance(refusal, Refusal):
        raise TypeError("the answer is marked as a refusal, but it is not a refusal")
    return decline(request, SITE_FAILED if refusal.failed else SITE_REFUSED, refusal.reason)


def decline(request: Message, code: int, reason: str) -> Message:
    """Return an error as the answer to a message; the reason is sent."""
    return Message(Error(code=code, reason=clean_text(reason)), reply_to=request)


def _starts(total: int) -> range:
    return range(0, total, PART_BYTES)


def read_frame_record(message: Message, *, numbers: int | None = None) -> bytes:
    """Return the bytes of the frame that a message contains.

    Flower transmits equal records only once, so a small message can expand to a large one here. Therefore the lengths
    are compared before the parts are joined.

    Args:
        message: the received message.
        numbers: maximum number of floats in the frame's arrays; None: the limit for any frame applies.

    Raises:
        MessageRefusedError: for an error reply, or a message that contains anything else than a frame.
    """
    if message.has_error():
        raise MessageRefusedError(_explain_error(message.error))
    if not message.has_content():
        raise MessageRefusedError("the message has no content")
    records = message.content
    places = [str(place) for place in range(len(records))]
    if not places or set(records) != set(places):
        found = clean_text(", ".join(list(records)[:5]), 100)
        raise MessageRefusedError(f"its records are {found}; those of a frame are numbered from 0{_OTHER_VERSION}")
    parts = [_read_part(records[place]) for place in places]
    head, body = read_prefix(parts[0][:PREFIX_BYTES])
    if numbers is not None and body > 4 * numbers:
        raise MessageRefusedError(f"arrays of {body} bytes; this message may contain at most {4 * numbers}")
    sizes = [min(PART_BYTES, PREFIX_BYTES + head + body - start) for start in _starts(PREFIX_BYTES + head + body)]
    if [len(part) for part in parts] != sizes:
        raise MessageRefusedError(f"the sizes of its records do not fit a frame of {PREFIX_BYTES + head + body} bytes")
    return b"".join(parts)


def _read_part(record: object) -> bytes:
    if not isinstance(record, ConfigRecord) or list(record) != [_PART]:
        raise MessageRefusedError(f"a record contains something other than '{_PART}'")
    part: bytes = require_type(record[_PART], bytes, _PART)
    return part


def _explain_error(error: Error) -> str:
    """Return a sentence that explains an error reply."""
    reason = clean_text(str(error.reason or ""))
    if error.code == SITE_REFUSED:
        return f"the site refused: {reason}"
    if error.code == SITE_FAILED:
        return "the site failed; see its own log for the reason"
    if error.code == SITE_AWAY:
        return "the site's worker does not answer; the site has to start it"
    return _OF_SUPERLINK.get(error.code) or f"Flower reports error {error.code}: {reason}"
