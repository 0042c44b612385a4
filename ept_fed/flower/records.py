"""The bytes of a frame in a Flower message, and out of it: whatever the two sides say to each other travels so.

Flower pushes and pulls every record, array and chunk of an array by a request of its own, each with the node's key and
a signature. So a frame is one record, and a large one a record per few megabytes: what a proxy takes in one request,
and what a slow line has to send again when it breaks.
"""

from flwr.app import ConfigRecord, Error, Message, RecordDict

from ept_fed.protocol.messages import MessageRefusedError, clean_text, require_type

__all__ = ["PART_BYTES", "SITE_AWAY", "SITE_FAILED", "SITE_REFUSED", "encode_frame_record", "read_frame_record"]

PART_BYTES = 5_000_000
SITE_REFUSED, SITE_FAILED, SITE_AWAY = 101, 102, 103
_PART = "frame"
# Errors that SuperLink makes in a node's name (flwr.common.constant.ErrorCode).
_OF_SUPERLINK = {
    3: "did not answer in time",
    4: "did not answer in time",
    5: "its node went offline: SuperLink has not heard of it for a minute",
}


def encode_frame_record(frame: bytes) -> RecordDict:
    """Return the bytes of a frame as the records of a message, PART_BYTES in each but the last."""
    parts = [frame[start : start + PART_BYTES] for start in range(0, len(frame), PART_BYTES)]
    return RecordDict({str(place): ConfigRecord({_PART: part}) for place, part in enumerate(parts)})


def read_frame_record(message: Message) -> bytes:
    """Return the bytes of the frame that a message holds.

    Raises:
        MessageRefusedError: for an error reply, or a message that holds anything else.
    """
    if message.has_error():
        raise MessageRefusedError(_explain_error(message.error))
    if not message.has_content():
        raise MessageRefusedError("the message has no content")
    records = message.content
    places = [str(place) for place in range(len(records))]
    if not places or set(records) != set(places):
        raise MessageRefusedError(f"records are {list(records)[:5]}; a frame's are numbered from 0")
    return b"".join(_read_part(records[place]) for place in places)


def _read_part(record: object) -> bytes:
    if not isinstance(record, ConfigRecord) or list(record) != [_PART]:
        raise MessageRefusedError(f"a record holds something else than '{_PART}'")
    part: bytes = require_type(record[_PART], bytes, _PART)
    return part


def _explain_error(error: Error) -> str:
    """Say what an error reply means."""
    reason = clean_text(str(error.reason or ""))
    if error.code == SITE_REFUSED:
        return f"the site refused: {reason}"
    if error.code == SITE_FAILED:
        return "the site failed; its own log says why"
    if error.code == SITE_AWAY:
        return "the site's worker does not answer; the site has to start it"
    return _OF_SUPERLINK.get(error.code) or f"Flower reports error {error.code}: {reason}"
