"""From what passed a site's door to what its report says of it: sums, and a record per round.

Whoever recorded the messages hands them over as `Passage`s: the worker its answers, a signed ledger its entries.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric import ec

from client.gate.open import read_ledger
from client.ledger.verify import examine
from client.site.run_record import Answer
from ept_fed.reports.run.round_record import RoundRecord, SiteExchange

__all__ = ["Passage", "count_passages", "describe_rounds", "list_passages", "read_ledger_passages"]


# What an update travels in: its round's answer, or apart from it under secure aggregation.
_UPDATES = ("train", "masked input")


@dataclass(frozen=True)
class Passage:
    """One message: `direction` as the site sees it, `kind` as in `Answer`, `round` None outside of rounds."""

    direction: Literal["in", "out"]
    kind: str
    round: int | None
    bytes: int


def list_passages(answers: Iterable[Answer]) -> tuple[Passage, ...]:
    """Return both messages of every answer; refusals, which hold a sentence and nothing else, are not among them."""
    return tuple(
        passage
        for answer in answers
        for passage in (
            Passage("in", answer.kind, answer.round, answer.bytes_in),
            Passage("out", answer.kind, answer.round, answer.bytes_out),
        )
    )


def read_ledger_passages(ledger: Path, key: ec.EllipticCurvePublicKey, run: str) -> tuple[Passage, ...]:
    """Return the messages of a run that a ledger says passed; none if it is missing, not sound, or not of this key.

    Raises:
        InputRefusedError: if it cannot be read.
    """
    if not ledger.exists():
        return ()
    examined = examine(*read_ledger(ledger), key)
    if not examined.sound:
        return ()
    kinds = {"introduce": "introduction"}
    return tuple(
        Passage(entry.direction, kinds.get(entry.kind, entry.kind), entry.round, entry.bytes)
        for entry in examined.entries
        if entry.run == run and entry.direction != "site" and entry.decision in ("passed", "clipped")
    )


def count_passages(passages: Sequence[Passage], counted_by: str) -> dict[str, Any]:
    """Return what left the site and what came, in the words of `ept_fed.reports.pages.site_report.Traffic`.

    Args:
        passages: of one run.
        counted_by: "worker" or "ledger".
    """
    left = [passage for passage in passages if passage.direction == "out"]
    return {
        "counted_by": counted_by,
        "messages_from_site": len(left),
        "bytes_to_site": sum(passage.bytes for passage in passages if passage.direction == "in"),
        "bytes_from_site": sum(passage.bytes for passage in left),
        "largest_update": max((passage.bytes for passage in left if passage.kind in _UPDATES), default=0),
    }


def describe_rounds(site: str, last: int, answers: Sequence[Answer], passages: Sequence[Passage]) -> list[RoundRecord]:
    """Return a record for each of the rounds 1 to `last`, as `rounds.jsonl` has them, with what one site can know.

    It knows its own numbers and messages. An update that it sent counts as averaged: the server does not say. What a
    round left is evaluated when the next request brings it. Messages of later rounds count with the last, as in a
    simulation.
    """
    trained = {answer.round: answer for answer in answers if answer.kind == "train"}
    masked = {answer.round for answer in answers if answer.kind == "masked input"}
    records = []
    for number in range(1, last + 1):
        own, after = trained.get(number), trained.get(number + 1)
        moved = [p for p in passages if p.round == number or (number == last and (p.round or 0) > last)]
        sent = [p for p in moved if p.direction == "out"]
        exchange = SiteExchange(
            examples=own.examples if own else 0,
            train=_select(own, validation=False),
            evaluation=_select(after, validation=True) or _find_evaluation(number, answers),
            bytes_sent=sum(p.bytes for p in moved if p.direction == "in"),
            bytes_received=sum(p.bytes for p in sent),
            train_bytes_received=max((p.bytes for p in sent if p.kind in _UPDATES), default=0),
        )
        there = (site,) if own else ()
        records.append(
            RoundRecord(
                round=number,
                seconds=math.nan,
                asked=there,
                aggregated=there if not masked or number in masked else (),
                outcome="not known at the site",
                sites={site: exchange},
                refused=[],
            )
        )
    return records


def _select(answer: Answer | None, *, validation: bool) -> dict[str, float]:
    """Return the metrics of training, or those of the received payload on the validation images."""
    prefix, metrics = "validation_", (answer.metrics or {}) if answer else {}
    return {
        name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix) is validation
    }


def _find_evaluation(number: int, answers: Sequence[Answer]) -> dict[str, float]:
    for answer in reversed(answers):
        if (answer.kind, answer.round, answer.split) == ("evaluate", number, "validation"):
            return dict(answer.metrics or {})
    return {}
