"""Subgroups, from the manifest's columns to the site's own page; they appear nowhere else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ept_fed.data.records.records import ImageRecord
from ept_fed.evaluation.metrics import classification_metrics
from ept_fed.reports.pages.site_report import build_site_report
from ept_fed.reports.pages.write_reports import write_reports
from ept_fed.reports.run.predictions import list_predictions, list_subgroups
from ept_fed.reports.run.read_run import read_run

pytestmark = pytest.mark.usefixtures("undrawn")

MakeRun = Callable[..., Path]
SUBGROUPS = {"sex": lambda patient: ("female", "male")[patient % 2], "age": lambda patient: str(20 + patient)}


class Images:
    task = "single_label"
    classes = ("a", "b")
    records = (
        ImageRecord("x.png", (0,), "north", "p1", "test", (("sex", "female"),)),
        ImageRecord("y.png", (1,), "north", "p2", "test"),
    )


def test_attributes_become_columns_and_stay_empty_where_none_is_stated() -> None:
    names = list_subgroups(Images.records)
    rows = list_predictions(Images, "test", "local", np.full((2, 2), 0.5), names)
    assert names == ("sex",)
    assert [row["subgroup:sex"] for row in rows] == ["female", ""]


def test_cells_hold_the_metrics_of_their_images(make_run: MakeRun) -> None:
    run = read_run(make_run(subgroups=SUBGROUPS))
    test = run.sites["north"].test
    report = build_site_report(run, "north", draws=100)
    sex = next(table for table in report.subgroups if table.column == "sex")
    assert [cell.value for cell in sex.cells] == ["female", "male"]
    for cell in sex.cells:
        inside = np.array([value == cell.value for value in test.subgroups["sex"]])
        want = classification_metrics(test.labels[inside], test.scores["federated"][inside], run.task)
        assert (cell.images, cell.cases) == (int(inside.sum()), 30)
        for metric in ("auc", "accuracy"):
            have = cell.values["federated"][metric]
            assert abs(have.value - want[metric]) < 1e-9
            assert have.low <= have.value <= have.high


def test_ages_are_banded_and_small_bands_hidden(make_run: MakeRun) -> None:
    folder = make_run(subgroups={"age": lambda patient: "" if patient < 3 else str(20 + patient // 2)})
    report = build_site_report(read_run(folder), "north", draws=20)
    (age,) = report.subgroups
    assert [cell.value for cell in age.cells] == ["20–29", "30–39", "40–49", "not stated"]
    assert [cell.shown for cell in age.cells] == [False, True, True, False]
    assert all(cell.cases is None and not cell.values for cell in age.cells if not cell.shown)


def test_subgroups_are_on_the_sites_page_and_nowhere_else(make_run: MakeRun) -> None:
    folder = make_run(subgroups={"scanner model": lambda patient: ("Xylo", "Yonder")[patient % 2]})
    write_reports(folder)
    document: dict[str, Any] = json.loads((folder / "sites" / "north" / "report.json").read_text())
    assert {cell["value"] for cell in document["subgroups"][0]["cells"]} == {"Xylo", "Yonder"}
    assert "Xylo" in (folder / "sites" / "north" / "report.html").read_text()
    for name in ("report.html", "report.json"):
        assert "Xylo" not in (folder / name).read_text()
        assert "scanner model" not in (folder / name).read_text()
