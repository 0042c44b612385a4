"""The messages of a site for its report: sums, and a record per round.

The messages come as `Passage`s, from the worker's answers or from the entries of a signed ledger.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric import ec

from client.gate.open_gate import read_ledger
from client.ledger.verify import examine
from client.site.run_record import Answer
from ept_fed.reports.run.round_record import RoundRecord, SiteExchange

__all__ = ["Passage", "count_passages", "describe_rounds", "list_passages", "read_ledger_passages"]


# Kinds of messages that contain an update: the answer to training, or the masked input under secure aggregation.
_UPDATES = ("train", "masked input")


@dataclass(frozen=True)
class Passage:
    """One message: `direction` is seen from the site, `kind` is that of `Answer`, `round` is None outside of rounds."""

    direction: Literal["in", "out"]
    kind: str
    round: int | None
    bytes: int


def list_passages(answers: Iterable[Answer]) -> tuple[Passage, ...]:
    """Return both messages of every answer; refusals are not included, because they contain only a sentence."""
    return tuple(
        passage
        for answer in answers
        for passage in (
            Passage("in", answer.kind, answer.round, answer.bytes_in),
            Passage("out", answer.kind, answer.round, answer.bytes_out),
        )
    )


def read_ledger_passages(ledger: Path, key: ec.EllipticCurvePublicKey, run: str) -> tuple[Passage, ...]:
    """Return the messages of a run that passed according to a ledger.

    The result is empty if the ledger is missing, altered, or not signed with this key.

    Raises:
        InputRefusedError: if the ledger cannot be read.
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
    """Return sums of the sent and received messages, with the keys of `ept_fed.reports.pages.site_report.Traffic`.

    Args:
        passages: the messages of one run.
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


def count_rounds(answers: Sequence[Answer]) -> int:
    """Return the number of the last round whose prompts the site evaluated."""
    trained = [(answer.round or 1) - 1 for answer in answers if answer.kind == "train"]
    evaluated = [answer.round or 0 for answer in answers if answer.kind == "evaluate" and answer.split == "validation"]
    return max([*trained, *evaluated], default=0)


def describe_rounds(site: str, last: int, answers: Sequence[Answer], passages: Sequence[Passage]) -> list[RoundRecord]:
    """Return a record for each of the rounds 1 to `last`, in the form of `rounds.jsonl`, from the data of one site.

    The records contain only the site's own numbers and messages. A sent update counts as averaged, because the server
    does not report this. The payload of a round is evaluated when the next request contains it. Messages of later
    rounds count with the last round, as in a simulation.
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
    """Return the metrics of training, or the metrics of the received payload on the validation images."""
    prefix, metrics = "validation_", (answer.metrics or {}) if answer else {}
    return {
        name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix) is validation
    }


def _find_evaluation(number: int, answers: Sequence[Answer]) -> dict[str, float]:
    for answer in reversed(answers):
        if (answer.kind, answer.round, answer.split) == ("evaluate", number, "validation"):
            return dict(answer.metrics or {})
    return {}
