"""What the gate writes of a message whatever it decides: who, when, about what, and the shapes of what it carries."""

from client.door import Direction
from client.ledger import Record
from ept_fed.protocol.layout import PayloadLayout
from ept_fed.protocol.messages import RoundRequest, clean_text
from ept_fed.protocol.stages import StageRequest

__all__ = ["name_tensors", "record_request", "record_stage"]


def record_request(request: RoundRequest, direction: Direction) -> Record:
    """Return what there is to say of a train or evaluate request, or of its answer, before either is judged."""
    return Record(
        direction,
        request.phase,
        "passed",
        run=clean_text(request.header.run, 64),
        round=request.header.round,
        split=request.split if request.phase == "evaluate" else None,
    )


def record_stage(request: StageRequest, direction: Direction) -> Record:
    """Return the same of a stage of secure aggregation."""
    header = request.header
    return Record(direction, request.stage, "passed", run=clean_text(header.run, 64), round=header.round)


def name_tensors(layout: PayloadLayout, beside: str | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return names and shapes of a payload's tensors, and of a vector of the same layout that travels beside it."""
    return layout.shapes + (
        () if beside is None else tuple((f"{beside}/{name}", shape) for name, shape in layout.shapes)
    )
