"""The final table: per site, local, federated and centralised models on the site's own test split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ept_fed.reports.run.run_document import SiteTraffic

__all__ = ["METRICS", "Comparison"]

METRICS = ("auc", "balanced_accuracy", "accuracy", "average_precision", "loss")


@dataclass(frozen=True)
class Comparison:
    """Metrics by setting and site.

    Attributes:
        settings: settings in the order of the table, e.g. ("local", "federated").
        metrics: setting -> site -> metric -> value.
        test_images: site -> number of test images.
        traffic: site -> traffic in bytes.
        choices: site -> the model that it chose, and the candidates, see `client.site.candidates.SiteChoice`; empty if
            the sites did not choose.
    """

    settings: tuple[str, ...]
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]]
    test_images: Mapping[str, int]
    traffic: Mapping[str, SiteTraffic]
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per site, and a last row with the unweighted mean over sites."""
        rows = []
        for site, images in self.test_images.items():
            row: dict[str, Any] = {"site": site, "test_images": images}
            for setting in self.settings:
                row |= {f"{setting}_{metric}": self.metrics[setting][site][metric] for metric in METRICS}
            traffic = self.traffic[site]
            row |= {"bytes_to_site": traffic.sent_to_site, "bytes_from_site": traffic.received_from_site}
            rows.append(row)
        mean: dict[str, Any] = {"site": "mean over sites"}
        mean |= {key: _mean([row[key] for row in rows]) for key in rows[0] if key != "site"}
        mean |= {key: sum(row[key] for row in rows) for key in ("test_images", "bytes_to_site", "bytes_from_site")}
        return [*rows, mean]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers by setting and site, as a JSON document."""
        return {
            "settings": list(self.settings),
            "test": {
                setting: {site: dict(values) for site, values in self.metrics[setting].items()}
                for setting in self.settings
            },
            "test_images": dict(self.test_images),
            "traffic": {site: dict(vars(traffic)) for site, traffic in self.traffic.items()},
            "choices": dict(self.choices),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Comparison":
        """Return the comparison from the output of `to_json`, after JSON turned NaN into null."""
        return cls(
            settings=tuple(document["settings"]),
            metrics={
                setting: {
                    site: {key: _number(value) for key, value in values.items()} for site, values in sites.items()
                }
                for setting, sites in document["test"].items()
            },
            test_images=dict(document["test_images"]),
            traffic={site: SiteTraffic(**traffic) for site, traffic in document["traffic"].items()},
            choices=dict(document.get("choices", {})),
        )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
