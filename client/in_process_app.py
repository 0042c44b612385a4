"""A ClientApp whose site is in the same process, as in simulations; no exception's text leaves it."""

import logging
from collections.abc import Callable

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client.site import Site
from ept_fed.flower import SITE_FAILED, SITE_REFUSED, decode_request, encode_reply
from ept_fed.protocol.layout import PayloadMismatchError
from ept_fed.protocol.messages import MessageRefusedError, Phase, clean_text
from ept_fed.training.loop import TrainingDivergedError

__all__ = ["create_client_app"]

_log = logging.getLogger(__name__)


def create_client_app(find_site: Callable[[Context], Site]) -> ClientApp:
    """Return a ClientApp whose train and evaluate are answered by `find_site(context)`.

    A declined request is answered with SITE_REFUSED and the sentence that says why, which names versions, shapes and
    the loss only. Any other failure is answered with SITE_FAILED and no detail: exception texts hold paths and file
    names, so they stay in the site's own log.
    """
    app = ClientApp()

    def answer(message: Message, context: Context, phase: Phase) -> Message:
        try:
            site = find_site(context)
            request = decode_request(message, phase, site.layout)
            reply = site.train(request) if phase == "train" else site.evaluate(request)
            return encode_reply(reply, message)
        except (MessageRefusedError, PayloadMismatchError, TrainingDivergedError) as refusal:
            reason = clean_text(str(refusal))
            _log.warning("declined a %s request: %s", phase, reason)
            return Message(Error(code=SITE_REFUSED, reason=reason), reply_to=message)
        except Exception:  # noqa: BLE001 - whatever it is, its text must not leave the site
            _log.exception("failed on a %s request", phase)
            return Message(Error(code=SITE_FAILED, reason="the site failed; its own log says why"), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, "train")

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answer(message, context, "evaluate")

    return app
