"""`ept-fed benchmark` on the command line; the fixture `trained` starts the true process."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from simulations.cli.benchmark import EXAMPLES
from tests.command_line import call, start
from tests.conftest import MICRO

SMALL = ("--seeds", "1", "--set", "federation.rounds=1", "--set", "data.phantom_sites=2", "--out", "results")
LOCAL = ("--method", "linear", "--setting", "local")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with the results of one cell, and the process that trained it."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "micro.yaml").write_text(yaml.safe_dump(MICRO))
    return folder, start("benchmark", "micro.yaml", *LOCAL, *SMALL, "--json", cwd=folder)


@pytest.mark.integration
def test_json_is_one_document_and_notes_go_to_stderr(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = trained
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["status"], report["cells"], report["trained"]) == ("done", 1, 1)
    assert "1/1 linear, 2 shots, seed 0, local: AUC" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.integration
def test_a_row_without_a_partner_has_no_difference(
    trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    alone = call("benchmark", "micro.yaml", *LOCAL, *SMALL)
    assert alone.exit_code == 0, alone.stderr
    (row,) = (line for line in alone.stdout.splitlines() if line.startswith("│ linear"))
    assert [cell.strip() for cell in row.strip("│").split("│")][5:] == ["", "1"]


@pytest.mark.integration
def test_a_grid_prints_cells_and_table_and_goes_on_where_it_stopped(
    micro_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    both = ("--method", "ept", "--method", "linear", "--setting", "federated+head")
    done = call("benchmark", micro_file, *both, *SMALL, "--analyse")
    assert done.exit_code == 0, done.stderr
    for said in ("1/2 ept, 2 shots, seed 0, federated+head: AUC", "about 0:00 left", "Δ ept", "2 of 2 cells"):
        assert said in done.stdout
    assert "Effect of tuning on the features: results/analysis.html" in done.stdout
    again = call("benchmark", micro_file, *both, *SMALL, "--json")
    assert again.exit_code == 0, again.stderr
    report = json.loads(again.stdout)
    assert (report["cells"], report["trained"]) == (2, 0)
    more = call("benchmark", micro_file, "--method", "bias", "--setting", "federated+head", *SMALL)
    assert more.exit_code == 0, more.stderr
    assert "1 of 1 cells" in more.stdout
    assert all(f" {method} " in more.stdout for method in ("ept", "linear", "bias"))
    refused = call("benchmark", micro_file, *both, *SMALL, "--set", "federation.rounds=2")
    assert refused.exit_code == 2
    assert "federation.rounds = 2: the results in results have 1" in refused.stderr


def test_an_example_names_no_folder_that_the_repository_has() -> None:
    (named,) = re.findall(r"--out (\S+)", EXAMPLES)
    tracked = {path.name for path in Path(__file__).resolve().parents[3].iterdir()} - {"out"}
    assert Path(named).parts[0] not in tracked


def test_an_unknown_method_is_answered_with_the_known(
    micro_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = call("benchmark", micro_file, "--method", "ept", "--method", "lorra")
    assert refused.exit_code == 2
    assert "did you mean 'lora'?" in refused.stderr
    assert not (tmp_path / "benchmarks").exists()
