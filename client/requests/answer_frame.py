"""From the bytes of a request to the bytes of its answer; whatever goes wrong in between becomes a refusal."""

import logging
from collections.abc import Callable

from client.gate.interface import GateInterface
from client.requests.refusals import explain
from client.requests.respond import GateRefusedError
from ept_fed.errors import InputRefusedError
from ept_fed.protocol.frames import Frame, Refusal, decode_frame, encode_frame, kind_of
from ept_fed.protocol.messages import MessageRefusedError

__all__ = ["answer_frame"]

_log = logging.getLogger(__name__)


def answer_frame(content: bytes, gate: GateInterface, answer: Callable[[Frame], Frame]) -> bytes:
    """Return the answer to a frame; a failure gives a refusal, without the text of an unexpected exception.

    A refusal that the gate did not make itself is recorded by it.

    Args:
        content: bytes of the frame, from outside.
        gate: the site's gate.
        answer: returns the answer to the decoded frame.
    """
    kind = "unreadable"
    try:
        frame = decode_frame(content)
        kind = kind_of(frame)
        return encode_frame(answer(frame))
    except Exception as error:  # noqa: BLE001 - the text of an exception must not leave the site
        return encode_frame(_refuse(error, kind, content, gate))


def _refuse(error: Exception, kind: str, content: bytes, gate: GateInterface) -> Refusal:
    refusal = explain(error)
    if refusal.failed or isinstance(error, InputRefusedError):
        _log.error("failed on a %s message", kind, exc_info=error)
    else:
        _log.warning("declined a %s message: %s", kind, refusal.reason)
    if not isinstance(error, GateRefusedError):
        try:
            gate.refused("in", kind, refusal.reason, content)
        except (MessageRefusedError, OSError):
            _log.exception("a refusal could not be recorded")
    return refusal
