"""The introduction of a virtual site to the server: its name, and the plan that it would follow.

Flower's simulation and an insecure SuperLink identify nodes only by random numbers, and the server has no backbone. The
server therefore requests an introduction. The name in it is not authenticated. This is sufficient for virtual sites on
one's own machines, but never for hospitals, whose names are registered with their keys.
"""

from dataclasses import dataclass

from flwr.app import Message

from ept_fed.flower.records import encode_frame_record, read_frame_record
from ept_fed.protocol.frames import decode_frame, encode_frame
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.protocol.proposal import PlanIntroduction
from ept_fed.run_plan.plan import Plan
from ept_fed.run_plan.plan_json import plan_from_json, plan_to_json

__all__ = ["Introduction", "decode_introduction", "encode_introduction"]


@dataclass(frozen=True)
class Introduction:
    """The site that a node represents, and the plan that its copy of the experiment and the backbone lead to."""

    site: str
    plan: Plan


def encode_introduction(introduction: Introduction, question: Message) -> Message:
    """Return an introduction as the reply to the server's request."""
    plan = introduction.plan
    frame = encode_frame(PlanIntroduction(introduction.site, plan_to_json(plan), plan.initial))
    return Message(encode_frame_record(frame), reply_to=question)


def decode_introduction(message: Message) -> Introduction:
    """Parse an introduction at the server.

    Raises:
        MessageRefusedError, PayloadMismatchError: for an error reply, or a message that is no introduction.
    """
    frame = decode_frame(read_frame_record(message))
    if not isinstance(frame, PlanIntroduction):
        raise MessageRefusedError("the node's answer is no introduction")
    plan = plan_from_json(frame.plan, frame.initial)
    if frame.site not in plan.sites:
        raise MessageRefusedError(f"site '{frame.site}' is not in its own plan, which has {', '.join(plan.sites)}")
    return Introduction(frame.site, plan)
