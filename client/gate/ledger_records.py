"""The ledger records that the gate makes of messages: kind, run, round, and the shapes of the tensors they carry."""

import dataclasses
import math

from client.gate.interface import Direction
from client.gate.outgoing import Release
from client.gate.privacy_budget import BUDGET
from client.ledger.ledger import Record
from ept_fed.protocol.layout import PayloadLayout
from ept_fed.protocol.messages import RoundRequest, clean_text
from ept_fed.protocol.stage_messages import StageRequest

__all__ = ["name_tensors", "record_charge", "record_release", "record_request", "record_stage"]


def record_request(request: RoundRequest, direction: Direction) -> Record:
    """Return the record of a train or evaluate request, or of its answer, before the gate has checked it."""
    return Record(
        direction,
        request.phase,
        "passed",
        run=clean_text(request.header.run, 64),
        round=request.header.round,
        split=request.evaluated,
    )


def record_stage(request: StageRequest, direction: Direction) -> Record:
    """Return the record of a stage of secure aggregation."""
    header = request.header
    return Record(direction, request.stage, "passed", run=clean_text(header.run, 64), round=header.round)


def record_charge(request: RoundRequest, end: str) -> Record:
    """Return the note that a private round was charged to the site's budget; `end` is the budget's new end."""
    about = {BUDGET: end}
    return Record("site", "charged", "noted", run=request.header.run, round=request.header.round, about=about)


def record_release(record: Record, released: Release, layout: PayloadLayout) -> Record:
    """Return the record of a released answer: its content, and the rules that altered it."""
    reply = released.reply
    payload = name_tensors(layout, None) if reply.payload is not None else ()
    gradient = name_tensors(layout, "gradient")[len(layout.shapes) :] if reply.gradient is not None else ()
    return dataclasses.replace(
        record,
        tensors=payload + gradient,
        metrics=tuple(name for name, value in reply.metrics.items() if not math.isnan(value)),
        images=reply.examples,
        decision="clipped" if released.clipped else "passed",
        rule=", ".join(rule for rule, _ in released.notes),
        reason="; ".join(text for _, text in released.notes),
    )


def name_tensors(layout: PayloadLayout, beside: str | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return names and shapes of a payload's tensors, and of a vector of the same layout that is sent with it."""
    return layout.shapes + (
        () if beside is None else tuple((f"{beside}/{name}", shape) for name, shape in layout.shapes)
    )
