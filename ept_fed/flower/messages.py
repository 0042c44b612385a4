"""Requests, replies, proposals and introductions as the frames of Flower messages, with checks of incoming messages.

A frame is refused unless it is serialized exactly as this version serializes it. Two checks remain for this module:
whether the frame is of the expected kind, and whether its vectors fit the run's layout.
"""

from flwr.app import Message, RecordDict

from ept_fed.flower.records import encode_frame_record, read_frame_record
from ept_fed.protocol.frames import Introduce, decode_frame, encode_frame, kind_of
from ept_fed.protocol.layout import PayloadLayout
from ept_fed.protocol.messages import Header, MessageRefusedError, Phase, RoundReply, RoundRequest
from ept_fed.protocol.proposal import Proposal, SiteIntroduction

__all__ = [
    "decode_introduction",
    "decode_reply",
    "decode_request",
    "encode_proposal",
    "encode_reply",
    "encode_request",
]


def encode_request(request: RoundRequest) -> RecordDict:
    """Return a request as the content of a message; the message type is the request's phase."""
    return encode_frame_record(encode_frame(request))


def decode_request(message: Message, phase: Phase, layout: PayloadLayout) -> RoundRequest:
    """Read and check a request at the site.

    Args:
        message: the message from the server.
        phase: the phase that the request must have.
        layout: layout of the run's payload.

    Raises:
        MessageRefusedError, PayloadMismatchError: if the message is not a well-formed request.
    """
    request = decode_frame(read_frame_record(message, numbers=2 * layout.size))
    if not isinstance(request, RoundRequest) or request.phase != phase:
        raise MessageRefusedError(f"the message holds a {kind_of(request)}, not a {phase} request")
    for vector in (request.payload, request.correction):
        if vector is not None:
            layout.check(vector)
    return request


def encode_reply(reply: RoundReply, request: Message) -> Message:
    """Return a site's reply as the answer to the request's message.

    Raises:
        MessageRefusedError: if a metric is infinite, which is not allowed in a reply.
    """
    return Message(encode_frame_record(encode_frame(reply)), reply_to=request)


def decode_reply(
    message: Message,
    phase: Phase,
    request: Header,
    layout: PayloadLayout,
    *,
    wants_gradient: bool = False,
    private: bool = False,
    masked: bool = False,
    silent: bool = False,
) -> RoundReply:
    """Read and check a reply at the server; see `RoundReply.check`.

    Raises:
        MessageRefusedError, PayloadMismatchError: for an error reply, or content that does not answer the request.
    """
    reply = decode_frame(read_frame_record(message, numbers=2 * layout.size))
    if not isinstance(reply, RoundReply) or reply.phase != phase:
        raise MessageRefusedError(f"the message holds a {kind_of(reply)}, not a {phase} reply")
    reply.check(request, layout, wants_gradient=wants_gradient, private=private, masked=masked, silent=silent)
    return reply


def encode_proposal(run: str, proposal: Proposal) -> RecordDict:
    """Return the server's proposal of a run as the content of a message of type "query"."""
    return encode_frame_record(encode_frame(Introduce(run, proposal)))


def decode_introduction(message: Message, run: str, proposal: Proposal) -> SiteIntroduction:
    """Read and check the answer to a proposal at the server.

    Raises:
        MessageRefusedError, PayloadMismatchError: for an error reply, or content that does not answer the proposal.
    """
    frame = decode_frame(read_frame_record(message))
    if not isinstance(frame, SiteIntroduction):
        raise MessageRefusedError("the answer to a proposal is not an introduction")
    frame.check(run, proposal)
    return frame
