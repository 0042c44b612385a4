"""One line of rounds.jsonl: written by the server, by simulations and by a site's own report, and read back by all."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

__all__ = ["Refusal", "RoundRecord", "SiteExchange", "split_lines"]

_SCHEMA = 1
# JSON has no NaN: what is undefined is null in the file.
_Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
_STRICT = ConfigDict(strict=True)


@dataclass(frozen=True)
class Refusal:
    """A site that was left out of an exchange, or of the secure aggregation that followed it, and why."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    site: str
    phase: Literal["train", "evaluate", "secure aggregation"]
    reason: str


@dataclass
class SiteExchange:
    """One site in one round; bytes are serialised message sizes, both directions seen from the server."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    examples: int = 0
    train: Mapping[str, _Number] = field(default_factory=dict)
    evaluation: Mapping[str, _Number] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    train_bytes_received: int = 0


@dataclass
class RoundRecord:
    """One round.

    Attributes:
        round: from 1.
        seconds: from the first request to the new payload; NaN where a site wrote the record.
        asked: sites selected to train.
        aggregated: sites whose updates made the payload that this round left; empty if the payload did not change.
        outcome: why nothing was aggregated, or "aggregated".
        sites: those that got any request; `evaluation` is of the payload that this round left.
        refused: sites left out, and why.
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
    def from_line(cls, line: str) -> "RoundRecord":
        """Read a line of rounds.jsonl.

        Raises:
            ValueError: for another schema, or naming the first key whose value is missing or of another type.
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
        """Read what `to_json` returned, after it went through JSON; errors as for `from_line`."""
        return cls.from_line(json.dumps(document))


_RECORD = TypeAdapter(RoundRecord)
_DOCUMENT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


def split_lines(text: str) -> list[str]:
    """Return the whole lines of rounds.jsonl; a last line that is only partially written is left out."""
    return text.split("\n")[:-1]
