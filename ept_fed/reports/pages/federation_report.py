"""The consortium's report as data: verdicts, differences between sites, participation and communication cost."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ept_fed.evaluation.bootstrap import Difference, Interval
from ept_fed.evaluation.histograms import LEAST_COUNT
from ept_fed.reports.pages.site_report import SiteReport
from ept_fed.reports.pages.wording import KEPT
from ept_fed.reports.run.cross_site import CrossSite
from ept_fed.reports.run.read_run import RunResult
from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.reports.run.settings import BASELINE, CHOSEN, FEDERATED, verdict_setting
from ept_fed.reports.statistics.pooled import PooledRow, pool_sites

__all__ = ["FederationReport", "Refused", "SiteRow", "build_federation_report"]

_MODELS = (
    (CHOSEN, "of the models that the sites chose"),
    (FEDERATED, "of the federated model"),
    (BASELINE, "of the local models"),
)


@dataclass(frozen=True)
class SiteRow:
    """One site in the table; without a comparison, `difference` is None; without a choice, `chosen` is empty."""

    site: str
    images: int
    cases: int
    auc: Mapping[str, Interval]
    chosen: str
    difference: Difference | None
    verdict: str
    rounds_averaged: int
    replies_refused: int
    bytes_to_site: int
    bytes_from_site: int


@dataclass(frozen=True)
class Refused:
    """Equal refusals of one site, with the rounds in which they occurred."""

    site: str
    phase: str
    reason: str
    rounds: tuple[int, ...]


@dataclass(frozen=True)
class FederationReport:
    """All content of the consortium's report.

    Attributes:
        run: content of the run's report.json.
        sentence: number of sites per verdict, in one sentence.
        fairness: sentences with the minimum, maximum, spread and mean of the macro AUC over sites.
        sites: one row per site.
        settings: settings in the order of the table.
        refused: refused replies with their reasons.
        notes: notes of the run.
        seconds_in_rounds: total time of the federated rounds, in seconds.
        rounds: number of finished rounds.
        axis: symmetric range of the forest plot.
        cross_site: each local model at each site, if a simulation computed it.
        pooled: AUC and calibration over all sites' images, computed from their histograms.
        sharing: number of sites with enough images to share histograms.
    """

    run: Mapping[str, Any]
    sentence: str
    fairness: tuple[str, ...]
    sites: tuple[SiteRow, ...]
    settings: tuple[str, ...]
    refused: tuple[Refused, ...]
    notes: tuple[str, ...]
    seconds_in_rounds: float
    rounds: int
    axis: float
    cross_site: CrossSite | None
    pooled: tuple[PooledRow, ...]
    sharing: int


def build_federation_report(run: RunResult, reports: Sequence[SiteReport]) -> FederationReport:
    """Return the consortium's report from the sites' reports; predictions of single images are not used."""
    rows = tuple(_row(report) for report in reports)
    edges = [abs(x) for row in rows if row.difference for x in (row.difference.low, row.difference.high)]
    widest = max((edge for edge in edges if not math.isnan(edge)), default=0.1)
    return FederationReport(
        run=run.report,
        sentence=_sentence(rows),
        fairness=_fairness(rows),
        sites=rows,
        settings=tuple(run.report["settings"]),
        refused=_gather_refused(run.rounds),
        notes=tuple(run.report.get("notes", ())),
        seconds_in_rounds=sum(record.seconds for record in run.rounds if not math.isnan(record.seconds)),
        rounds=len(run.rounds),
        axis=max(0.02, math.ceil(widest * 50) / 50),
        cross_site=run.cross_site,
        pooled=pool_sites([report.shared for report in reports], run.report["classes"], run.report["settings"]),
        sharing=sum(row.images >= LEAST_COUNT for row in rows),
    )


def _row(report: SiteReport) -> SiteRow:
    auc = report.statistics.metrics[0]
    return SiteRow(
        site=report.site,
        images=report.statistics.images,
        cases=report.statistics.cases,
        auc=auc.values,
        chosen="" if report.choice is None else report.choice["name"],
        difference=auc.differences.get(verdict_setting(auc.values)),
        verdict=report.headline.verdict,
        rounds_averaged=sum(row.averaged for row in report.learning),
        replies_refused=sum(bool(row.refused) for row in report.learning),
        bytes_to_site=report.traffic.bytes_to_site,
        bytes_from_site=report.traffic.bytes_from_site,
    )


def _sentence(rows: Sequence[SiteRow]) -> str:
    verdicts = Counter(row.verdict for row in rows)
    parts = []
    for verdict, words in (
        ("helped", "helped"),
        ("no clear difference", "without a clear difference"),
        (KEPT, "keeping the local model"),
        ("harmed", "harmed"),
        ("none", "without a verdict"),
    ):
        if verdicts[verdict]:
            parts.append(f"{verdicts[verdict]} {words}")
    return f"Of {len(rows)} site{'' if len(rows) == 1 else 's'}: {', '.join(parts) or 'none'}."


def _fairness(rows: Sequence[SiteRow]) -> tuple[str, ...]:
    sentences = []
    for setting, words in _MODELS:
        known = [(row.auc[setting].value, row.site) for row in rows if setting in row.auc]
        known = sorted(pair for pair in known if not math.isnan(pair[0]))
        if len(known) > 1:
            (low, worst), (high, best) = known[0], known[-1]
            mean = sum(value for value, _ in known) / len(known)
            sentences.append(
                f"AUC {words}: lowest {low:.3f} ({worst}), highest {high:.3f} ({best}), spread {high - low:.3f}, "
                f"unweighted mean {mean:.3f} over {len(known)} sites."
            )
    return tuple(sentences)


def _gather_refused(rounds: Sequence[RoundRecord]) -> tuple[Refused, ...]:
    found: dict[tuple[str, str, str], list[int]] = {}
    for record in rounds:
        for refusal in record.refused:
            found.setdefault((refusal.site, refusal.phase, refusal.reason), []).append(record.round)
    return tuple(Refused(*key, rounds=tuple(numbers)) for key, numbers in found.items())
