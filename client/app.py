"""The ClientApp that SuperNode starts anew for every message: it forwards the message's bytes to the site's worker.

It holds no image and no model, and it does not read the content that it forwards. It imports little, because it is
loaded for every message. It is the only code that the server's bundle brings to a hospital's machine. The worker
decides which messages may come in and go out; it runs behind the socket, where this code has no access.
"""

import logging
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.worker.unix_sockets import WorkerAwayError, ask_worker
from ept_fed.flower.records import SITE_AWAY, SITE_FAILED, SITE_REFUSED, decline, encode_answer, read_frame_record
from ept_fed.protocol.frame_prefix import read_lengths
from ept_fed.protocol.messages import MessageRefusedError

__all__ = ["SOCKET_KEY", "app"]

SOCKET_KEY = "worker-socket"

_log = logging.getLogger("flwr.ept_fed")  # shown in SuperNode's log
app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Forward a proposal or a stage of secure aggregation to the worker, and return its answer."""
    return _forward(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Forward a train request to the worker, and return its reply."""
    return _forward(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Forward an evaluate request to the worker, and return its reply."""
    return _forward(message, context)


def _forward(message: Message, context: Context) -> Message:
    """Forward a message to the worker; always return a message, because SuperNode would otherwise wait for ever."""
    answer = _ask(message, context)
    if answer.has_error():
        _log.warning("declined: %s", answer.error.reason)
    return answer


def _ask(message: Message, context: Context) -> Message:
    try:
        question = read_frame_record(message)
        read_lengths(question)
        socket = Path(str(context.node_config[SOCKET_KEY]))
        return encode_answer(ask_worker(socket, question, seconds=message.metadata.ttl), message)
    except MessageRefusedError as refusal:
        return decline(message, SITE_REFUSED, str(refusal))
    except WorkerAwayError as away:
        return decline(message, SITE_AWAY, str(away))
    except Exception:  # noqa: BLE001 - the text of an exception must not leave the site
        _log.exception("a message could not be forwarded to the site's worker")
        return decline(message, SITE_FAILED, "the site failed; its own log says why")
