"""A ClientApp whose site is in the same process, as in simulations; texts of unexpected exceptions stay inside."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client.site.secure_aggregation import SecureRounds, SumTerms, answer_stage
from client.site.site import Site
from ept_fed.errors import InputRefusedError
from ept_fed.flower.messages import decode_request, encode_reply
from ept_fed.flower.records import SITE_FAILED, SITE_REFUSED, encode_frame_record, read_frame_record
from ept_fed.protocol.frames import decode_frame, encode_frame
from ept_fed.protocol.layout import PayloadMismatchError
from ept_fed.protocol.messages import MessageRefusedError, Phase, clean_text
from ept_fed.protocol.stage_messages import StageRequest
from ept_fed.training.loop import TrainingDivergedError

__all__ = ["SecureSums", "create_client_app"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SecureSums:
    """How the in-process sites take part in secure aggregation.

    Attributes:
        find_rounds: returns the secure rounds of the site with this name.
        terms: the terms of the sums.
    """

    find_rounds: Callable[[str], SecureRounds]
    terms: SumTerms


def create_client_app(find_site: Callable[[Context], Site], sums: SecureSums | None = None) -> ClientApp:
    """Return a ClientApp whose train and evaluate are answered by `find_site(context)`, and stages by `sums`.

    A declined request is answered with SITE_REFUSED and a sentence that states the reason. The sentence contains only
    versions, shapes and the loss. Any other failure is answered with SITE_FAILED and no detail: exception texts contain
    paths and file names, so they stay in the site's own log.
    """
    app = ClientApp()

    def answer(message: Message, context: Context, phase: Phase | Literal["stage"]) -> Message:
        try:
            site = find_site(context)
            if phase == "stage":
                return _answer_stage(message, site, sums)
            request = decode_request(message, phase, site.layout)
            if sums is not None and phase == "train":
                sums.find_rounds(site.name).begin(request)
            reply = site.train(request) if phase == "train" else site.evaluate(request)
            return encode_reply(reply, message)
        except (MessageRefusedError, PayloadMismatchError, TrainingDivergedError, InputRefusedError) as refusal:
            reason = clean_text(str(refusal))
            _log.warning("declined a %s request: %s", phase, reason)
            return Message(Error(code=SITE_REFUSED, reason=reason), reply_to=message)
        except Exception:  # noqa: BLE001 - the text of an exception must not leave the site
            _log.exception("failed on a %s request", phase)
            return Message(Error(code=SITE_FAILED, reason="the site failed; its own log says why"), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, "train")

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answer(message, context, "evaluate")

    @app.query()
    def stage(message: Message, context: Context) -> Message:
        return answer(message, context, "stage")

    return app


def _answer_stage(message: Message, site: Site, sums: SecureSums | None) -> Message:
    request = decode_frame(read_frame_record(message))
    if sums is None or not isinstance(request, StageRequest):
        raise MessageRefusedError("this run has no secure aggregation")
    reply = answer_stage(request, site, sums.find_rounds(site.name), sums.terms)
    return Message(encode_frame_record(encode_frame(reply)), reply_to=message)
