"""The members of a model whose logits are the weighted sum of those of several models in one backbone.

The tensors of a member have the member's name as prefix: `local/sinks`, `federated/sinks`. A single model has no
members, and the names of its tensors have no prefix.
"""

import math
from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

from ept_fed.config.base import Positive
from ept_fed.errors import Problem

__all__ = ["TENSORS", "Members", "check_members", "describe_members", "tensors_by_member"]

# The number of axes of every tensor that a model may have.
TENSORS = {"sinks": 2, "prompts": 3, "tokens": 3, "head.weight": 2, "head.bias": 1}

_FILE = "model.safetensors"
_SEPARATOR = "/"
_TOLERANCE = 1e-6
_Value = TypeVar("_Value")


def _check_shares(members: dict[str, float]) -> dict[str, float]:
    """Check what the types of name and share leave open.

    Raises:
        ValueError: for a single member, a name with a separator, or shares that do not sum to 1.
    """
    if len(members) < 2:
        raise ValueError(f"are {sorted(members)}, need two or more; a single model has no members")
    for name in members:
        if _SEPARATOR in name:
            raise ValueError(f"include '{name}'; a name has no '{_SEPARATOR}', which ends it in the name of a tensor")
    total = math.fsum(members.values())
    if not math.isclose(total, 1.0, rel_tol=0.0, abs_tol=_TOLERANCE):
        raise ValueError(f"have shares that sum to {total:.9g}, need 1; divide each share by the sum")
    return members


Members = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=1000)], Positive],
    AfterValidator(_check_shares),
]


def tensors_by_member(
    tensors: Mapping[str, _Value], members: Mapping[str, float] | None
) -> dict[str, dict[str, _Value]]:
    """Return the tensors, or their shapes, of each member, by their names without prefix.

    Args:
        tensors: by name, as in model.safetensors.
        members: shares by member; None: a single model.

    Returns:
        by member in the order of `members`, without the tensors of no member; a single model has the name "".
    """
    if members is None:
        return {"": dict(tensors)}
    found: dict[str, dict[str, _Value]] = {member: {} for member in members}
    for name, value in tensors.items():
        member, separator, own = name.partition(_SEPARATOR)
        if separator and member in found:
            found[member][own] = value
    return found


def check_members(shapes: Mapping[str, tuple[int, ...]], members: Mapping[str, float] | None) -> list[Problem]:
    """Return the problems that prevent summing the members' logits: all must have the same tensors, and no others.

    Args:
        shapes: by name, as in model.safetensors.
        members: shares by member; None: a single model, which has no problem here.
    """
    if members is None:
        return []
    by_member = tensors_by_member(shapes, members)
    own_of = {f"{member}{_SEPARATOR}{own}": own for member, found in by_member.items() for own in found}
    problems = []
    for name in shapes:
        if name not in own_of:
            fix = f"belongs to no member; start its name with one of: {', '.join(f'{m}{_SEPARATOR}' for m in members)}"
            problems.append(Problem(_FILE, name, fix))
        elif own_of[name] not in TENSORS:
            problems.append(Problem(_FILE, name, f"is not a tensor of a model, which are: {', '.join(TENSORS)}"))
    for own in TENSORS:
        holders = {member: found[own] for member, found in by_member.items() if own in found}
        if not holders:
            continue
        first, wanted = next(iter(holders.items()))
        for member in members:
            name = f"{member}{_SEPARATOR}{own}"
            if member not in holders:
                fix = f"is missing; every member needs the tensors that '{first}' has"
                problems.append(Problem(_FILE, name, fix))
            elif tuple(holders[member]) != tuple(wanted):
                fix = f"need {tuple(wanted)}, as in '{first}'; all members must have the same shapes"
                problems.append(Problem(f"{_FILE}: {name}", tuple(holders[member]), fix))
    return problems


def describe_members(members: Mapping[str, float]) -> str:
    """Return a sentence that says what the logits of the model are, for people."""
    terms = " + ".join(f"{share:g} × {name}" for name, share in members.items())
    return f"The logits of this model are the weighted sum of the logits of {len(members)} models: {terms}."
