"""One line of rounds.jsonl, which the server, simulations and a site's own report write and read."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

__all__ = ["Refusal", "RoundRecord", "SiteExchange", "split_lines"]

_SCHEMA = 1
# JSON has no NaN, so undefined numbers are null in the file.
_Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
_STRICT = ConfigDict(strict=True)


@dataclass(frozen=True)
class Refusal:
    """The exclusion of a site from an exchange, or from the following secure aggregation, with the reason."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    site: str
    phase: Literal["train", "evaluate", "secure aggregation"]
    reason: str


@dataclass
class SiteExchange:
    """One site in one round; bytes are sizes of serialized messages, with directions as seen from the server."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    examples: int = 0
    train: Mapping[str, _Number] = field(default_factory=dict)
    evaluation: Mapping[str, _Number] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    train_bytes_received: int = 0


@dataclass
class RoundRecord:
    """The record of one round.

    Attributes:
        round: number of the round, from 1.
        seconds: time from the first request to the new payload; NaN if a site wrote the record.
        asked: sites selected to train.
        aggregated: sites whose updates are in the round's new payload; empty if the payload did not change.
        outcome: the reason why nothing was aggregated, or "aggregated".
        sites: sites that received any request; `evaluation` belongs to the round's new payload.
        refused: excluded sites, with reasons.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    round: int
    seconds: _Number
    asked: tuple[str, ...]
    aggregated: tuple[str, ...]
    outcome: str
    sites: dict[str, SiteExchange]
    refused: list[Refusal]

    def site(self, name: str) -> SiteExchange:
        """Return the entry of a site; an empty entry is added if there is none."""
        return self.sites.setdefault(name, SiteExchange())

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON document with its schema version."""
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
    def from_line(cls, line: str) -> "RoundRecord":
        """Return the record in a line of rounds.jsonl.

        Raises:
            ValueError: for another schema, or for a missing value or wrong type; the message names the first such key.
        """
        try:
            document = _DOCUMENT.validate_json(line)
            if document.get("schema") != _SCHEMA:
                raise ValueError(f"schema {document.get('schema')} is not {_SCHEMA}")
            return _RECORD.validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"])) or "the whole line"
            raise ValueError(f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}") from error

    @classmethod
    def from_json(cls, document: Any) -> "RoundRecord":
        """Return the record from the output of `to_json`, after JSON; raises the errors of `from_line`."""
        return cls.from_line(json.dumps(document))


_RECORD = TypeAdapter(RoundRecord)
_DOCUMENT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


def split_lines(text: str) -> list[str]:
    """Return the complete lines of rounds.jsonl, without a partially written last line."""
    return text.split("\n")[:-1]
