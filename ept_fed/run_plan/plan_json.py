"""Conversion of a plan to and from JSON, so that a process with the backbone can pass it to a server without one.

The JSON text does not contain the initial payload, which is passed separately as an array, bit for bit.
"""

import dataclasses
import json
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ept_fed.protocol.layout import PayloadMismatchError, Vector
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.run_plan.plan import Plan

__all__ = ["plan_differences", "plan_from_json", "plan_to_json"]

_BESIDE = "initial"


def plan_to_json(plan: Plan) -> str:
    """Return a plan as JSON: all fields except the initial payload."""
    document = {name: kind.dump_python(getattr(plan, name), mode="json") for name, kind in _fields().items()}
    return json.dumps(document, separators=(",", ":"), sort_keys=True)


def plan_from_json(text: str, initial: Vector) -> Plan:
    """Return the plan from the output of `plan_to_json` and the initial payload.

    Raises:
        MessageRefusedError: if the text is not the JSON of a plan; the message names the field.
        PayloadMismatchError: if the initial payload does not fit the plan's layout.
    """
    fields = _fields()
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MessageRefusedError("the plan is not JSON") from error
    if not isinstance(document, dict) or set(document) != set(fields):
        found = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise MessageRefusedError(f"the plan has the fields {found}; a plan of this version has {sorted(fields)}")
    values: dict[str, Any] = {}
    for name, kind in fields.items():
        try:
            values[name] = kind.validate_python(document[name])
        except (ValidationError, PayloadMismatchError) as error:
            raise MessageRefusedError(f"the plan's '{name}' cannot be {document[name]!r:.80}") from error
    plan = Plan(initial=initial, **values)
    plan.layout.check(initial)
    return plan


def plan_differences(ours: Plan, theirs: Plan) -> list[str]:
    """Return the names of the fields that differ between two plans; initial payloads are compared bit for bit."""
    mine, other = json.loads(plan_to_json(ours)), json.loads(plan_to_json(theirs))
    differing = [name for name in mine if mine[name] != other[name]]
    return differing + [_BESIDE] * (ours.initial.tobytes() != theirs.initial.tobytes())


def _fields() -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(Plan)
    return {field.name: TypeAdapter(hints[field.name]) for field in dataclasses.fields(Plan) if field.name != _BESIDE}
