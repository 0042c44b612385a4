"""What a round came to: the line of rounds.jsonl, there and back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.rounds.admission import Refusal

__all__ = ["RoundRecord", "SiteExchange"]

_SCHEMA = 1


@dataclass
class SiteExchange:
    """What one site did in one round; bytes are serialised message sizes, both directions seen from the server."""

    examples: int = 0
    train: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    train_bytes_received: int = 0


@dataclass
class RoundRecord:
    """One round, as it goes into rounds.jsonl.

    Attributes:
        round: from 1.
        seconds: from the first request to the new payload.
        asked: sites that were to train.
        aggregated: sites whose updates made the payload that this round left; empty if it left the old one.
        outcome: why nothing was aggregated, or "aggregated".
        sites: those that were asked for anything; `evaluation` is of the payload that this round left.
        refused: who was left out, and why.
    """

    round: int
    seconds: float
    asked: tuple[str, ...]
    aggregated: tuple[str, ...]
    outcome: str
    sites: dict[str, SiteExchange]
    refused: list[Refusal]

    def site(self, name: str) -> SiteExchange:
        """Return a site's entry, made empty if it has none yet."""
        return self.sites.setdefault(name, SiteExchange())

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready document with its schema version."""
        return {
            "schema": _SCHEMA,
            "round": self.round,
            "seconds": round(self.seconds, 3),
            "asked": list(self.asked),
            "aggregated": list(self.aggregated),
            "outcome": self.outcome,
            "sites": {name: dict(vars(exchange)) for name, exchange in sorted(self.sites.items())},
            "refused": [dict(vars(refusal)) for refusal in self.refused],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "RoundRecord":
        """Read what `to_json` returned, after a trip through JSON, where NaN became null.

        Raises:
            ValueError: for another schema, or for what is not the record of a round.
        """
        if not isinstance(document, dict):
            raise ValueError(f"{type(document).__name__} is not the record of a round")
        if document.get("schema") != _SCHEMA:
            raise ValueError(f"schema {document.get('schema')} is not {_SCHEMA}")
        try:
            return cls(
                round=int(document["round"]),
                seconds=float(document["seconds"]),
                asked=tuple(document["asked"]),
                aggregated=tuple(document["aggregated"]),
                outcome=str(document["outcome"]),
                sites={name: SiteExchange(**_with_nan(entry)) for name, entry in document["sites"].items()},
                refused=[Refusal(**refusal) for refusal in document["refused"]],
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not the record of a round ({error})") from error


def _with_nan(entry: Mapping[str, Any]) -> dict[str, Any]:
    def read(metrics: Mapping[str, float | None]) -> dict[str, float]:
        return {key: math.nan if value is None else value for key, value in metrics.items()}

    return {**entry, "train": read(entry["train"]), "evaluation": read(entry["evaluation"])}
