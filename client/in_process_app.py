"""A ClientApp whose site is in the same process, as in simulations; texts of unexpected exceptions stay inside."""

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.requests.answer_frame import answer_frame
from client.requests.refusals import explain
from client.requests.respond import SitePart, respond
from ept_fed.flower.records import SITE_REFUSED, decline, encode_answer, read_frame_record
from ept_fed.protocol.frames import Frame, encode_frame, kind_of
from ept_fed.protocol.messages import MessageRefusedError, RoundRequest
from ept_fed.protocol.stage_messages import StageRequest

__all__ = ["create_client_app"]

_log = logging.getLogger(__name__)


def create_client_app(find_part: Callable[[Context], SitePart]) -> ClientApp:
    """Return a ClientApp that answers every message as the site's worker would, with the part that a node has.

    A declined request is answered with SITE_REFUSED and a sentence that states the reason. Any other failure is
    answered with SITE_FAILED and no detail: exception texts contain paths and file names, so they stay in the log.
    """
    app = ClientApp()

    @app.query()
    @app.train()
    @app.evaluate()
    def answer(message: Message, context: Context) -> Message:
        try:
            content, part = read_frame_record(message), find_part(context)
        except MessageRefusedError as refusal:
            return decline(message, SITE_REFUSED, str(refusal))
        except Exception as error:  # noqa: BLE001 - the text of an exception must not leave the site
            _log.exception("there is no site for a message")
            return encode_answer(encode_frame(explain(error)), message)
        return encode_answer(answer_frame(content, part.gate, lambda frame: _respond(frame, content, part)), message)

    return app


def _respond(frame: Frame, content: bytes, part: SitePart) -> Frame:
    if not isinstance(frame, RoundRequest | StageRequest):
        raise MessageRefusedError(f"a site does not answer a frame of kind '{kind_of(frame)}'")
    return respond(frame, content, part)
