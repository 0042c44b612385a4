"""Byzantine sites: payloads that a hostile or faulty site could send instead of its update, to test the defences."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from ept_fed.flower.messages import encode_reply
from ept_fed.flower.records import read_frame_record
from ept_fed.protocol.frames import decode_frame
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import RoundReply, RoundRequest
from ept_fed.seeds import numpy_generator

__all__ = ["ATTACKS", "attack_through"]

# (received payload (n,), trained payload (n,), random generator) -> payload that the site sends (n,)
Attack = Callable[[Vector, Vector, np.random.Generator], Vector]

ATTACKS: dict[str, Attack] = {
    "sign flip": lambda received, trained, _: received - (trained - received),
    "scaled by -100": lambda received, trained, _: received - 100 * (trained - received),
    "noise": lambda received, _, rng: received + rng.normal(0, 3, received.shape).astype(np.float32),
    "NaN": lambda received, _trained, _rng: np.full_like(received, np.nan),
}


def attack_through(app: ClientApp, site: str, attack: str, seed: int) -> ClientApp:
    """Return an app that answers like `app`, except that it alters the payload of every train reply of `site`."""
    attacked = ClientApp()

    @attacked.train()
    def train(message: Message, context: Context) -> Message:
        answer: Message = app(message, context)
        if context.node_config["site"] != site or answer.has_error():
            return answer
        request, reply = (decode_frame(read_frame_record(part)) for part in (message, answer))
        if not isinstance(request, RoundRequest) or not isinstance(reply, RoundReply) or reply.payload is None:
            return answer
        rng = numpy_generator(seed, site, message.metadata.group_id, "attack")
        sent = ATTACKS[attack](request.payload, reply.payload, rng)
        return encode_reply(replace(reply, payload=sent), message)

    @attacked.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return app(message, context)

    return attacked
