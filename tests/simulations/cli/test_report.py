"""`ept-fed report` on the command line; `test_json_is_one_document_and_nothing_else` starts the true process."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ept_fed.config.experiment import Experiment
from ept_fed.progress import Silent
from tests.command_line import call, start
from tests.conftest import leave_charts_out


@pytest.fixture(scope="module", autouse=True)
def _undrawn() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_charts_out(patch)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from simulations.engine.simulate import simulate

    settings = {
        "data": {"source": "phantoms", "phantom_sites": 2, "patients_per_class": 8, "shots": 2},
        "model": {"backbone": "test_vit", "image_size": 64, "prompt_length": 2},
        "federation": {"rounds": 1},
    }
    made = tmp_path_factory.mktemp("report") / "run"
    simulate(Experiment.model_validate(settings), made, Silent())
    shutil.copy(made / "sites" / "site-1" / "report.html", made / "page-of-site-1.html")
    return made


def test_it_says_for_each_site_whether_joining_helped(folder: Path) -> None:
    done = call("report", folder)
    assert done.exit_code == 0, done.output
    assert "site-1: " in done.stdout
    assert "site-2: " in done.stdout
    assert (folder / "report.html").exists()


@pytest.mark.integration
def test_json_is_one_document_and_nothing_else(folder: Path) -> None:
    done = start("report", folder, "--json", "--format", "json", cwd=folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["status"] == "done"
    assert set(document["verdicts"]) == {"site-1", "site-2"}
    assert {Path(path).name for path in document["files"]} == {"report.json", "shared.json"}


def test_numbers_are_the_runs_own(folder: Path) -> None:
    """AUC and loss equal those in the run's report.json, up to the digits of predictions.csv; bytes are exact."""
    assert call("report", folder, "--format", "json").exit_code == 0
    summary = json.loads((folder / "report.json").read_text())
    for site, metrics in summary["test"]["federated"].items():
        report = json.loads((folder / "sites" / site / "report.json").read_text())
        values = {row["metric"]: row["values"]["federated"]["value"] for row in report["statistics"]["metrics"]}
        for name in ("accuracy", "balanced_accuracy", "loss"):
            assert values[name] == pytest.approx(metrics[name], abs=1e-4)
        assert values["auc"] == pytest.approx(metrics["auc"], abs=0.01)
        assert report["traffic"]["bytes_from_site"] == summary["traffic"][site]["received_from_site"]


def test_the_gallery_of_an_earlier_run_is_the_one_it_made_itself(folder: Path) -> None:
    page = folder / "sites" / "site-1" / "report.html"
    page.unlink()
    done = call("report", folder, "--site", "site-1", "--gallery")
    assert done.exit_code == 0, done.output
    assert "data:image/png;base64," in page.read_text()
    assert page.read_bytes() == (folder / "page-of-site-1.html").read_bytes()


@pytest.mark.parametrize(
    ("setting", "other"),
    [("seed: 0", "seed: 1"), ("patients_per_class: 8", "patients_per_class: 16"), ("test_vit", "no_such_vit")],
)
def test_other_images_or_weights_make_no_gallery(folder: Path, setting: str, other: str) -> None:
    config = folder / "config.yaml"
    held = config.read_text()
    try:
        assert setting in held
        config.write_text(held.replace(setting, other))
        refused = call("report", folder, "--gallery")
    finally:
        config.write_text(held)
    assert refused.exit_code == 2
    assert ("model.backbone" if other == "no_such_vit" else "than the run's") in refused.stderr


def test_csv_has_a_row_for_every_number(folder: Path) -> None:
    assert call("report", folder, "--format", "csv", "--site", "site-1").exit_code == 0
    lines = (folder / "sites" / "site-1" / "report.csv").read_text().splitlines()
    assert lines[0] == "site,class,metric,setting,value,low,high,verdict"
    assert any(line.startswith("site-1,,auc,federated - local,") for line in lines)


def test_an_unknown_site_is_refused_with_the_known_ones(folder: Path) -> None:
    refused = call("report", folder, "--site", "nowhere")
    assert refused.exit_code == 2
    assert "site-1, site-2" in refused.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    refused = call("report", tmp_path, "--json")
    assert refused.exit_code == 2
    assert json.loads(refused.stdout)["status"] == "refused"


def test_without_a_browser_a_pdf_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    failed = call("report", folder, "--format", "pdf")
    assert failed.exit_code == 1
    assert "PDF needs Chromium" in failed.stderr
