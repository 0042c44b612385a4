"""An attack by the server: crafted prompts that make updates leak more, with sinks that let only one token attend.

The sink of every other token is so high that its attention output vanishes. The attack is simple and the same for every
image. PromptMIA (arXiv 2601.06641) crafts prompts for one target image, which this module does not try.
"""

from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from client.gate.incoming import check_change, measure_change
from client.gate.policy import Policy, load_policy
from client.gate.run_history import KnownRun
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import Header, RoundRequest

__all__ = ["ask_gate", "craft_prompts", "read_rules", "shorten_step"]

_HEIGHT = 10.0


def read_rules(policy: Path | None) -> Policy:
    """Return the rules of a policy.yaml, or the default ones.

    Raises:
        InputRefusedError: with every problem of the file. A file that the user names must exist.
    """
    if policy is None:
        return Policy()
    if not policy.is_file():
        raise InputRefusedError([Problem("--policy", str(policy), "is not a file; name a site's policy.yaml")])
    return load_policy(policy)


def craft_prompts(payload: Vector, layout: PayloadLayout) -> Vector:
    """Return a payload whose sinks, in every layer, are -10 for the first token (cls) and 10 for all others."""
    tensors = layout.unflatten(payload)
    if "sinks" in tensors:
        tensors["sinks"] = _dominated(tensors["sinks"].shape)
    else:
        folded = logsumexp(tensors["prompts"], axis=-1)
        tensors["prompts"] = tensors["prompts"] + (_dominated(folded.shape) - folded)[..., None]
    return layout.flatten(tensors)


def shorten_step(latest: Vector, crafted: Vector, layout: PayloadLayout, bound: float) -> Vector:
    """Return the crafted payload, or the farthest point towards it that is within the bound of the latest payload.

    The bound is a root mean square over the numbers of each tensor, as in `incoming.prompt_change`.
    """
    moved = max(measure_change(crafted, latest, layout).values())
    if moved <= bound:
        return crafted
    # Slightly less than the bound, so that rounding to float32 cannot exceed it.
    return np.asarray(latest + (crafted - latest) * np.float32(bound / moved * (1 - 1e-5)), dtype=np.float32)


def ask_gate(policy: Policy, latest: Vector, payload: Vector, layout: PayloadLayout, round_number: int) -> str | None:
    """Return the reason why the site's gate refuses prompts after the latest ones; None if it accepts them."""
    header = Header("", round_number, "", "")
    request = RoundRequest(header, "train", round_number, payload, "train")
    broken = check_change(policy, request, latest, layout, KnownRun(""), "")
    return "; ".join(str(rule) for rule in broken) or None


def _dominated(shape: tuple[int, ...]) -> Vector:
    sinks = np.full(shape, _HEIGHT, dtype=np.float32)
    sinks[:, 0] = -_HEIGHT
    return sinks
