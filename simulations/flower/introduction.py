"""How a virtual site introduces itself to the server: its name, and the plan it would follow.

Flower's simulation and an insecure SuperLink know nodes by random numbers only, and the server holds no backbone. So it
asks. A name told this way is the node's own word: fine for virtual sites on one's own machines, and never good enough
for hospitals, whose names are registered with their keys.
"""

from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from ept_fed.protocol.messages import MessageRefusedError, require_type
from ept_fed.run_plan.plan import Plan
from ept_fed.run_plan.plan_json import plan_from_json, plan_to_json

__all__ = ["Introduction", "decode_introduction", "encode_introduction"]

_CONFIG, _ARRAYS = "config", "arrays"
_SITE, _PLAN, _INITIAL = "site", "plan", "initial"


@dataclass(frozen=True)
class Introduction:
    """Which site a node stands for, and the plan that its copy of the experiment and the backbone lead to."""

    site: str
    plan: Plan


def encode_introduction(introduction: Introduction, question: Message) -> Message:
    """Return an introduction as the answer to the server's question."""
    config = ConfigRecord({_SITE: introduction.site, _PLAN: plan_to_json(introduction.plan)})
    initial = Array(np.ascontiguousarray(introduction.plan.initial, dtype=np.float32))
    return Message(RecordDict({_CONFIG: config, _ARRAYS: ArrayRecord({_INITIAL: initial})}), reply_to=question)


def decode_introduction(message: Message) -> Introduction:
    """Read an introduction at the server.

    Raises:
        MessageRefusedError, PayloadMismatchError: for an error reply, or anything that is no introduction.
    """
    if message.has_error():
        raise MessageRefusedError(f"error {message.error.code}: {message.error.reason}")
    content = message.content
    if list(content.config_records) != [_CONFIG] or list(content.array_records) != [_ARRAYS]:
        raise MessageRefusedError(f"records are {list(content)}; an introduction has '{_CONFIG}' and '{_ARRAYS}'")
    config, arrays = content.config_records[_CONFIG], list(content.array_records[_ARRAYS].values())
    if len(arrays) != 1:
        raise MessageRefusedError(f"an introduction holds one array, not {len(arrays)}")
    try:
        initial = arrays[0].numpy()
    except (TypeError, ValueError) as error:
        raise MessageRefusedError(f"the initial payload cannot be read ({type(error).__name__})") from error
    plan = plan_from_json(require_type(config.get(_PLAN), str, _PLAN), initial)
    site = require_type(config.get(_SITE), str, _SITE)
    if site not in plan.sites:
        raise MessageRefusedError(f"site '{site}' is not in its own plan, which has {', '.join(plan.sites)}")
    return Introduction(site, plan)
