"""AUC and calibration over the test images of all sites, computed from the histograms that the sites share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from ept_fed.evaluation.histograms import (
    CONFIDENCE_EDGES,
    LEAST_COUNT,
    SCORE_EDGES,
    Bounded,
    SharedHistograms,
    count_scores,
    pool_auc,
    pool_calibration_error,
)
from ept_fed.reports.run.read_predictions import PredictionTable

__all__ = ["PooledRow", "SharedCounts", "count_to_share", "describe_shared", "pool_sites"]

SharedCounts = Mapping[str, SharedHistograms]

_SCHEMA = 1


@dataclass(frozen=True)
class PooledRow:
    """The metrics of one setting over all sites that shared histograms.

    Attributes:
        setting: name of the setting; in "local", the images of a site have the scores of its own model.
        classes: class -> AUC against the rest; NaN if no image or every image has the class.
        auc: mean over the classes with a defined AUC, also of the bounds.
        calibration_error: see `pool_calibration_error`.
    """

    setting: str
    classes: Mapping[str, Bounded]
    auc: Bounded
    calibration_error: Bounded


def count_to_share(test: PredictionTable, task: str) -> SharedCounts:
    """Return a site's histograms by setting; they contain only counts and no single score."""
    return {setting: count_scores(test.labels, scores, task) for setting, scores in test.scores.items()}


def describe_shared(site: str, classes: Sequence[str], shared: SharedCounts) -> dict[str, Any]:
    """Return the document of shared.json; a bin is [lower edge, upper edge, images, hits], with edges by index."""
    return {
        "schema": _SCHEMA,
        "site": site,
        "least_count": LEAST_COUNT,
        "settings": {
            setting: {
                "classes": {
                    name: [list(astuple(part)) for part in bins]
                    for name, bins in zip(classes, histograms.classes, strict=True)
                },
                "confidence": [list(astuple(part)) for part in histograms.confidence],
                "withheld": histograms.withheld,
            }
            for setting, histograms in shared.items()
        },
        "score_edges": SCORE_EDGES.tolist(),
        "confidence_edges": CONFIDENCE_EDGES.tolist(),
    }


def pool_sites(sites: Sequence[SharedCounts], classes: Sequence[str], settings: Sequence[str]) -> tuple[PooledRow, ...]:
    """Return the metrics of each setting from the sum of the sites' histograms, without access to single images."""
    rows = []
    for setting in settings:
        shared = [site[setting] for site in sites]
        by_class = {name: pool_auc(shared, c) for c, name in enumerate(classes)}
        rows.append(PooledRow(setting, by_class, _average(list(by_class.values())), pool_calibration_error(shared)))
    return tuple(rows)


def _average(values: Sequence[Bounded]) -> Bounded:
    known = [astuple(value) for value in values if not math.isnan(value.value)]
    if not known:
        return Bounded(math.nan, math.nan, math.nan)
    value, low, high = (sum(column) / len(known) for column in zip(*known, strict=True))
    return Bounded(value, low, high)
