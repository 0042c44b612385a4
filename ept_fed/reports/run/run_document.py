"""The keys and types that a run folder's report.json must have before anything is computed from it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ept_fed.evaluation.convergence import TrainingState

__all__ = ["PrivacySpending", "SiteTraffic", "parse_report"]

_Numbers = Mapping[str, float | None]


@dataclass(frozen=True)
class SiteTraffic:
    """Serialized bytes of one site over the whole run, in both directions, and of its largest training reply."""

    sent_to_site: int
    received_from_site: int
    largest_update: int


@dataclass(frozen=True)
class PrivacySpending:
    """The (ε, δ)-differential privacy of a site's training images that noise on gradients or updates guarantees.

    Attributes:
        covers: unit of protection. "image": presence or absence of any one training image; "site": replacement of all
            training images of the site.
        noise: source of the noise. "poisson-subsampled": on the gradients of images; on whole updates: "local", added
            by the site; "distributed", by all sites of a sum; "central", by the server.
        silent: whether loss and quality metrics, which have no noise, were not sent.
        epsilon: ε of this run's updates.
        delta: δ.
        rounds: number of rounds that were trained with noise.
        epsilon_of_all_runs: ε of all private runs of the site together, from its budget; null without a budget.
    """

    covers: str
    noise: str
    silent: bool
    epsilon: float
    delta: float
    rounds: int
    epsilon_of_all_runs: float | None


class _Section(BaseModel):
    # Keys that a later minor version adds are accepted and ignored.
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


class _Training(_Section):
    rounds: int
    chosen: int
    state: TrainingState
    auc_change: float | None
    loss_change: float | None


class _Candidate(_Section):
    name: str
    loss: float
    difference: float
    standard_error: float | None


class _Choice(_Section):
    name: Literal["federated", "personalised", "sum of both", "local"]
    reason: str
    rows: list[_Candidate]
    local_head: str | None
    personal_head: str | None
    share: float | None


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
    chosen_round: int | None = None
    training: dict[str, dict[str, _Training]] = {}
    choices: dict[str, _Choice] = {}


def parse_report(text: str) -> dict[str, Any]:
    """Return the unchanged content of report.json, after a check.

    Raises:
        ValueError: for a missing value or a wrong type; the message names the first such key.
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
