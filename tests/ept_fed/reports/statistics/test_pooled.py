"""Pooled statistics, from the sites' histograms to the consortium's page."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ept_fed.evaluation.histograms import LEAST_COUNT
from ept_fed.reports.pages.federation_report import build_federation_report
from ept_fed.reports.pages.write_reports import build_reports, write_reports
from ept_fed.reports.run.read_run import read_run

pytestmark = pytest.mark.usefixtures("undrawn")

MakeRun = Callable[..., Path]


def test_the_pooled_auc_is_that_of_all_sites_images_together(make_run: MakeRun) -> None:
    run = read_run(make_run(patients=(30, 30, 30)))
    report = build_federation_report(run, build_reports(run))
    tests = [site.test for site in run.sites.values()]
    labels = np.concatenate([test.labels for test in tests])
    for row in report.pooled:
        scores = np.concatenate([test.scores[row.setting] for test in tests])
        exact = [roc_auc_score(labels == c, scores[:, c]) for c in range(3)]
        for value, bounded in zip(exact, row.classes.values(), strict=True):
            assert bounded.low <= value <= bounded.high
            assert bounded.high - bounded.low < 0.08
        assert row.auc.low <= np.mean(exact) <= row.auc.high


def test_only_counts_are_shared_and_none_is_small(make_run: MakeRun) -> None:
    folder = make_run(validation=(5, 5, 5))
    write_reports(folder)
    document = json.loads((folder / "sites" / "north" / "shared.json").read_text())
    assert set(document) == {"schema", "site", "least_count", "settings", "score_edges", "confidence_edges"}
    for shared in document["settings"].values():
        for bins in (*shared["classes"].values(), shared["confidence"]):
            assert all(isinstance(number, int) for part in bins for number in part)
            assert all(images >= LEAST_COUNT for _, _, images, _ in bins)
    assert "shared" not in json.loads((folder / "sites" / "north" / "report.json").read_text())


def test_a_site_with_too_few_images_shares_nothing_and_is_not_counted(make_run: MakeRun) -> None:
    folder = make_run(patients=(1, 1, 0))
    write_reports(folder)
    assert "All sites' images together" not in (folder / "report.html").read_text()
    shared = json.loads((folder / "sites" / "north" / "shared.json").read_text())["settings"]["federated"]
    assert not any(shared["classes"].values())
    assert not shared["confidence"]
