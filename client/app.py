"""The ClientApp that SuperNode starts anew for every message: it hands the message to the site's worker.

It holds no image and no model, and imports neither torch nor monai: it starts in a second and is the only code that the
server's bundle brings to a hospital's machine. What comes in and goes out is decided behind the socket, where this code
cannot reach.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client.worker_socket import WorkerAwayError, ask_worker
from ept_fed.flower import (
    SITE_AWAY,
    SITE_FAILED,
    SITE_REFUSED,
    decode_request,
    encode_frame_record,
    encode_reply,
    read_frame_record,
)
from ept_fed.protocol.frames import Frame, Introduce, Refusal, decode_frame, encode_frame
from ept_fed.protocol.layout import PayloadMismatchError
from ept_fed.protocol.messages import MessageRefusedError, RoundReply, RoundRequest, clean_text
from ept_fed.protocol.proposal import SiteIntroduction
from ept_fed.protocol.stages import StageReply, StageRequest

__all__ = ["SOCKET_KEY", "app"]

SOCKET_KEY = "worker-socket"

_log = logging.getLogger("flwr.ept_fed")  # shown in SuperNode's log
app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Hand a proposal or a stage of secure aggregation to the worker, and its answer back."""
    return _forward(message, context, _read_question)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Hand a train request to the worker, and its reply back."""
    return _forward(message, context, lambda received: decode_request(received, "train", None))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Hand an evaluate request to the worker, and its reply back."""
    return _forward(message, context, lambda received: decode_request(received, "evaluate", None))


def _forward(message: Message, context: Context, read: Callable[[Message], Frame]) -> Message:
    """Always return a message: one that is missing would leave SuperNode waiting for ever."""
    try:
        question = read(message)
        socket = Path(str(context.node_config[SOCKET_KEY]))
        answer = ask_worker(socket, question, seconds=message.metadata.ttl)
        if isinstance(answer, Refusal):
            return _decline(message, SITE_FAILED if answer.failed else SITE_REFUSED, answer.reason)
        if (type(question), type(answer)) in {(Introduce, SiteIntroduction), (StageRequest, StageReply)}:
            return Message(encode_frame_record(encode_frame(answer)), reply_to=message)
        if isinstance(question, RoundRequest) and isinstance(answer, RoundReply):
            return encode_reply(answer, message)
        raise TypeError(f"the worker answered with a {type(answer).__name__}")
    except (MessageRefusedError, PayloadMismatchError) as refusal:
        return _decline(message, SITE_REFUSED, str(refusal))
    except WorkerAwayError as away:
        return _decline(message, SITE_AWAY, str(away))
    except Exception:  # noqa: BLE001 - whatever it is, its text must not leave the site
        _log.exception("a message could not be handed to the site's worker")
        return _decline(message, SITE_FAILED, "the site failed; its own log says why")


def _read_question(message: Message) -> Frame:
    frame = decode_frame(read_frame_record(message))
    if not isinstance(frame, Introduce | StageRequest):
        raise MessageRefusedError("the question holds neither a proposal nor a stage")
    return frame


def _decline(message: Message, code: int, reason: str) -> Message:
    sentence = clean_text(reason)
    _log.warning("declined: %s", sentence)
    return Message(Error(code=code, reason=sentence), reply_to=message)
