"""One site's report as data: the content of report.json and of the site's page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ept_fed.evaluation.bootstrap import DRAWS
from ept_fed.reports.pages.wording import Headline, describe_limits, headline
from ept_fed.reports.run.read_run import RunResult
from ept_fed.reports.run.round_record import RoundRecord, SiteExchange
from ept_fed.reports.run.run_document import PrivacySpending
from ept_fed.reports.run.training_record import TrainingRecord
from ept_fed.reports.statistics.pooled import SharedCounts, count_to_share
from ept_fed.reports.statistics.site import Statistics, analyse
from ept_fed.reports.statistics.subgroups import SubgroupTable, analyse_subgroups
from ept_fed.seeds import numpy_generator

__all__ = ["SCHEMA", "RoundRow", "SiteReport", "Traffic", "build_site_report"]

_OF_RUN = ("name", "run", "seed", "rounds", "round", "chosen_round", "strategy", "share", "status")
SCHEMA = 1
"""Schema of sites/<site>/report.json. Its keys are the fields of `SiteReport`; undefined numbers are null."""


@dataclass(frozen=True)
class RoundRow:
    """One round from the view of this site; NaN or empty if the site did not participate or nothing was measured."""

    round: int
    train_loss: float
    validation_auc: float
    bytes_to_site: int
    bytes_from_site: int
    asked: bool
    averaged: bool
    refused: str


@dataclass(frozen=True)
class Traffic:
    """Traffic of the site: messages and serialized bytes, and the tensors of one update with their shapes.

    A reply in a round contains the trained prompts and the evaluation of the previous round's result. One additional
    evaluation ends the run (`server.rounds.loop`).

    Attributes:
        counted_by: "server": counted over the messages of the rounds as Flower sends them; "ledger": counted over the
            passed messages in the site's signed ledger; "worker": counted over the frames at the worker's socket. The
            last two include the proposal.
    """

    counted_by: str

    messages_from_site: int
    bytes_to_site: int
    bytes_from_site: int
    largest_update: int
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    numbers_per_update: int


@dataclass(frozen=True)
class SiteReport:
    """The complete report of one site; the classes of the fields define units and meanings.

    Attributes:
        schema: version of this document.
        site: name of the site.
        run: name, identity, seed, strategy and shared tensors; `round` is the round of the evaluated prompts in a
            site's own report, and null in a simulation.
        task: single_label or multi_label.
        classes: names of the classes, in the order of every list by class.
        settings: compared models, in the order of the table.
        sensitivity: target sensitivity of the operating points.
        headline: the verdict.
        choice: the model that the site chose, and all candidates, see `client.site.candidates.SiteChoice`; None if it
            uses the federated model.
        statistics: all numbers on the test images.
        subgroups: AUC and accuracy by value of each subgroup column, with small cells hidden; empty without such
            columns.
        learning: one row per round.
        training: how training ended, by setting; empty for runs before this was recorded.
        traffic: data sent and received by the site.
        privacy: the spent privacy budget; null for a run without noise.
        data: images and groups by split and class, as counted before the run.
        fingerprint: versions, backbone digest, seeds and device.
        limits: limits of the report, as sentences.
        shared: score histograms for the consortium; in shared.json, not in report.json.
    """

    schema: int
    site: str
    run: Mapping[str, Any]
    task: str
    classes: tuple[str, ...]
    settings: tuple[str, ...]
    sensitivity: float
    headline: Headline
    choice: Mapping[str, Any] | None
    statistics: Statistics
    subgroups: tuple[SubgroupTable, ...]
    learning: tuple[RoundRow, ...]
    training: Mapping[str, TrainingRecord]
    traffic: Traffic
    privacy: PrivacySpending | None
    data: tuple[Mapping[str, Any], ...]
    fingerprint: Mapping[str, Any]
    limits: tuple[str, ...]
    shared: SharedCounts

    def to_json(self) -> dict[str, Any]:
        """Return the document of report.json; the JSON writer turns NaN into null."""
        document = asdict(replace(self, shared={}))
        del document["shared"]
        return document


def build_site_report(run: RunResult, site: str, *, sensitivity: float = 0.9, draws: int = DRAWS) -> SiteReport:
    """Return the report of a site; the bootstrap draws depend only on the run's seed and the site's name."""
    predictions, report = run.sites[site], run.report
    seed = int(report["seed"])
    rng = numpy_generator(seed, site, "report")
    classes = tuple(report["classes"])
    statistics = analyse(predictions, classes, run.task, rng, sensitivity=sensitivity, draws=draws)
    training = {
        setting: TrainingRecord.from_json(records[site])
        for setting, records in report.get("training", {}).items()
        if site in records
    }
    choice = _read_choice(report.get("choices", {}).get(site))
    return SiteReport(
        schema=SCHEMA,
        site=site,
        run={key: report.get(key) for key in _OF_RUN},
        task=run.task,
        classes=classes,
        settings=tuple(report["settings"]),
        sensitivity=sensitivity,
        headline=headline(statistics, run.case if predictions.grouped else "one image", training, choice),
        choice=choice,
        statistics=statistics,
        subgroups=analyse_subgroups(predictions.test, run.task, numpy_generator(seed, site, "subgroups"), draws),
        learning=tuple(_read_round(record, site) for record in run.rounds),
        training=training,
        traffic=_sum_traffic(run, site),
        privacy=_read_spending(report.get("privacy", {}).get(site)),
        data=tuple(row for row in report["data"] if row["site"] == site),
        fingerprint={
            "run": report["run"],
            "seed": report["seed"],
            "backbone": report.get("backbone", {}).get("name"),
            "backbone digest": report.get("backbone", {}).get("digest"),
            "payload layout hash": report["payload"].get("hash"),
            "device": report.get("device"),
            "bootstrap draws": draws,
            **{f"version of {name}": version for name, version in report.get("versions", {}).items()},
        },
        limits=(
            *describe_limits(statistics, predictions, run.case, run.task),
            *report.get("limits", {}).get(site, ()),
        ),
        shared=count_to_share(predictions.test, run.task),
    )


def _read_round(record: RoundRecord, site: str) -> RoundRow:
    exchange = record.sites.get(site, SiteExchange())
    return RoundRow(
        round=record.round,
        train_loss=exchange.train.get("loss", math.nan),
        validation_auc=exchange.evaluation.get("auc", math.nan),
        bytes_to_site=exchange.bytes_sent,
        bytes_from_site=exchange.bytes_received,
        asked=site in record.asked,
        averaged=site in record.aggregated,
        refused="; ".join(f"{item.phase}: {item.reason}" for item in record.refused if item.site == site),
    )


def _sum_traffic(run: RunResult, site: str) -> Traffic:
    exchanges = [record.sites.get(site, SiteExchange()) for record in run.rounds]
    layout = tuple((str(name), tuple(int(axis) for axis in shape)) for name, shape in run.report["payload"]["layout"])
    counted = run.report.get("counted") or {
        "counted_by": "server",
        "messages_from_site": _count_messages(exchanges),
        "bytes_to_site": sum(exchange.bytes_sent for exchange in exchanges),
        "bytes_from_site": sum(exchange.bytes_received for exchange in exchanges),
        "largest_update": max((exchange.train_bytes_received for exchange in exchanges), default=0),
    }
    return Traffic(**counted, tensors=layout, numbers_per_update=int(run.report["payload"]["bytes"]) // 4)


def _read_spending(spent: Mapping[str, Any] | None) -> PrivacySpending | None:
    return None if spent is None else PrivacySpending(**spent)


def _read_choice(choice: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return a site's choice, with NaN for undefined numbers instead of null."""
    if choice is None:
        return None
    rows = [{key: math.nan if value is None else value for key, value in row.items()} for row in choice["rows"]]
    return {**choice, "rows": rows, "share": math.nan if choice["share"] is None else choice["share"]}


def _count_messages(exchanges: Sequence[SiteExchange]) -> int:
    """Return the number of replies of the site, including refused ones and the final one in the last round's record."""
    answered = sum(bool(exchange.bytes_received) for exchange in exchanges)
    last = exchanges[-1] if exchanges else SiteExchange()
    return answered + bool(last.train and last.evaluation)
