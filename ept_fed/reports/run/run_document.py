"""The keys and types that a run folder's report.json must have before anything is computed from it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["PrivacySpending", "SiteTraffic", "parse_report"]

_Numbers = Mapping[str, float | None]


@dataclass(frozen=True)
class SiteTraffic:
    """Serialised bytes of one site over the whole run, both directions, and of its training replies alone."""

    sent_to_site: int
    received_from_site: int
    largest_update: int


@dataclass(frozen=True)
class PrivacySpending:
    """What noise on gradients or updates promises about a site's training images: (ε, δ)-differential privacy.

    Attributes:
        covers: "image": any one training image, present or not; "site": all of them, exchanged for any others.
        noise: "poisson-subsampled", on the gradients of images; or who adds it to whole updates: "local", the site;
            "distributed", all sites of a sum; "central", the server.
        silent: whether loss and quality, which have no noise, stayed at the site.
        epsilon: ε of this run's updates.
        delta: δ.
        rounds: that were trained with noise.
        epsilon_of_all_runs: ε of every private run of the site together, by its own budget; null where it keeps none.
    """

    covers: str
    noise: str
    silent: bool
    epsilon: float
    delta: float
    rounds: int
    epsilon_of_all_runs: float | None


class _Section(BaseModel):
    # What a later minor version adds is for it to read.
    model_config = ConfigDict(strict=True, extra="allow")


class _Payload(_Section):
    layout: list[tuple[str, list[int]]]
    bytes: int
    hash: str | None = None


class _Counted(_Section):
    counted_by: str
    messages_from_site: int
    bytes_to_site: int
    bytes_from_site: int
    largest_update: int


class _Count(_Section):
    site: str


class _Backbone(_Section):
    name: str | None = None
    digest: str | None = None


class _Report(_Section):
    status: Literal["done", "failed"]
    name: str
    run: str
    seed: int
    classes: list[str]
    settings: list[str]
    test_images: dict[str, int]
    traffic: dict[str, SiteTraffic]
    payload: _Payload
    data: list[_Count]
    test: dict[str, dict[str, _Numbers]] = {}
    counted: _Counted | None = None
    privacy: dict[str, PrivacySpending | None] = {}
    backbone: _Backbone | None = None
    versions: dict[str, str] = {}
    notes: list[str] = []
    limits: dict[str, list[str]] = {}


def parse_report(text: str) -> dict[str, Any]:
    """Return report.json as it stands.

    Raises:
        ValueError: naming the first key whose value is missing or of another kind.
    """
    return _parse(_Report, text)


def _parse(kind: type[_Section], text: str) -> dict[str, Any]:
    try:
        kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}") from error
    document: dict[str, Any] = json.loads(text)
    return document
