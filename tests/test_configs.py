"""Every file of configs/ is an experiment that begins with its command, and so is every cell of its grid."""

from pathlib import Path

import pytest

import ept_fed.contradictions
import ept_fed.data_contradictions
from ept_fed.benchmark_cells import list_cells
from ept_fed.experiment_file import load_experiment

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name != "federation.yaml")


@pytest.fixture
def _files_are_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ept_fed.contradictions, ept_fed.data_contradictions):
        monkeypatch.setattr(module, "check_exists", lambda _field, _path: [])


@pytest.mark.usefixtures("_files_are_elsewhere")
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_config_holds_together_and_names_its_own_command(path: Path) -> None:
    experiment = load_experiment(path)
    first = path.read_text().splitlines()[0]
    verb = "benchmark" if "benchmark" in experiment.model_fields_set else "simulate"
    assert first.startswith(f"# ept-fed {verb} configs/{path.name}")
    if verb == "benchmark":
        cells = list_cells(experiment)
        assert len({(cell.method, cell.shots, cell.sampling, cell.seed, cell.setting) for cell in cells}) == len(cells)
