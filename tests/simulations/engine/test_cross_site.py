"""The cross-site matrix of a simulation, from the trained models to the page of the federation."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.evaluation.metrics import class_auc
from ept_fed.progress import Silent
from ept_fed.reports.run.cross_site import CROSS_SITE_FILE, read_cross_site, write_cross_site
from ept_fed.reports.run.read_run import read_run
from simulations.engine.simulate import simulate

Micro = Callable[..., Experiment]
CLASSES = ("a", "b")


def rows(undefined: tuple[str, str] | None = None, untrained: tuple[str, str] | None = None) -> list[dict[str, object]]:
    return [
        {
            "model": model,
            "tested_on": tested,
            "class": name,
            "auc": float("nan") if (tested, name) == undefined else 0.75,
            "test_images": 5,
            "training_images": 0 if (model, name) == untrained else 3,
        }
        for model in "xy"
        for tested in "xy"
        for name in CLASSES
    ]


@pytest.mark.integration
def test_the_diagonal_is_each_local_model_at_its_own_site(micro: Micro, tmp_path: Path) -> None:
    out = tmp_path / "run"
    simulate(micro("evaluation.cross_site=true", "federation.rounds=1"), out, Silent())
    run = read_run(out)
    assert run.cross_site is not None
    assert run.cross_site.auc.shape == (3, 3)
    for i, site in enumerate(run.cross_site.sites):
        test = run.sites[site].test
        hot = np.arange(len(run.report["classes"]))[None, :] == test.labels[:, None]
        want = np.mean(class_auc(hot, test.scores["local"]))
        assert run.cross_site.auc[i, i] == pytest.approx(want, abs=1e-5)
    page = (out / "report.html").read_text()
    assert "Local models at other sites" in page
    assert f"{run.cross_site.auc[0, 1]:.3f}" in page
    with (out / CROSS_SITE_FILE).open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * 3 * len(run.report["classes"])


def test_without_the_setting_there_is_no_matrix(micro_run: Path) -> None:
    assert not (micro_run / CROSS_SITE_FILE).exists()
    assert "Local models at other sites" not in (micro_run / "report.html").read_text()


def test_a_class_absent_where_a_model_is_tested_is_left_out_of_the_whole_column_and_counted(tmp_path: Path) -> None:
    write_cross_site(tmp_path, rows(undefined=("y", "b")))
    matrix = read_cross_site(tmp_path / CROSS_SITE_FILE, "xy", CLASSES, [])
    assert matrix is not None
    assert matrix.classes == (2, 1)
    assert np.array_equal(matrix.auc, np.full((2, 2), 0.75))


def test_a_model_never_trained_on_a_class_has_no_value_where_that_class_counts(tmp_path: Path) -> None:
    write_cross_site(tmp_path, rows(undefined=("y", "b"), untrained=("x", "b")))
    matrix = read_cross_site(tmp_path / CROSS_SITE_FILE, "xy", CLASSES, [])
    assert matrix is not None
    assert np.array_equal(np.isnan(matrix.auc), [[True, False], [False, False]])


@pytest.mark.parametrize("change", [lambda text: text[:-30], lambda text: text.replace("auc", "AUC", 1)])
def test_a_broken_matrix_is_refused(tmp_path: Path, change: Callable[[str], str]) -> None:
    write_cross_site(tmp_path, rows())
    path = tmp_path / CROSS_SITE_FILE
    path.write_text(change(path.read_text()))
    problems: list[object] = []
    assert read_cross_site(path, "xy", CLASSES, problems) is None
    assert len(problems) == 1


def test_local_models_are_needed(micro: Micro) -> None:
    with pytest.raises(InputRefusedError, match="add local to"):
        micro("evaluation.cross_site=true", "evaluation.baselines=[]")
