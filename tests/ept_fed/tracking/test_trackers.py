"""Every tracker of the catalogue has each number of a run once, even if the run was resumed or tracked again."""

import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.progress import Silent
from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.tracking import registry as writers
from ept_fed.tracking.registry import WRITERS, WriterInfo
from ept_fed.tracking.scalars import list_round
from ept_fed.tracking.tracker import Tracker
from ept_fed.tracking.writer import TrackedRun
from simulations.engine.simulate import simulate
from tests.command_line import call
from tests.conftest import leave_charts_out

Points = Counter[tuple[str, int, float]]
SETTINGS: dict[str, Any] = {
    "name": "tracked",
    "about": "words of mine",
    "data": {"source": "phantoms", "phantom_sites": 2, "patients_per_class": 8, "shots": 2, "validation_shots": 2},
    "model": {"backbone": "test_vit", "image_size": 64, "prompt_length": 2},
    "federation": {"rounds": 3},
    "evaluation": {"baselines": []},
}


def read_tensorboard(folder: Path) -> tuple[Points, str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store = EventAccumulator(str(folder / "tracking" / "tensorboard"), size_guidance={"scalars": 0})
    store.Reload()
    points = [(tag, point.step, point.value) for tag in store.Tags()["scalars"] for point in store.Scalars(tag)]
    (file,) = (folder / "tracking" / "tensorboard").iterdir()
    return Counter((tag, step, round(value, 4)) for tag, step, value in points), file.name + str(file.read_bytes())


def read_mlflow(folder: Path) -> tuple[Points, str]:
    from mlflow import MlflowClient

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'tracking' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tracked")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = [point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key)]
    (table,) = client.list_artifacts(run.info.run_id)
    text = Path(run.info.artifact_uri.removeprefix("file://"), table.path).read_text()
    told = f"{run.data.params} {run.data.tags} {run.data.metrics} {run.info.user_id} {text}"
    return Counter((point.key, point.step, round(point.value, 4)) for point in history), told


READERS: dict[str, Callable[[Path], tuple[Points, str]]] = {"tensorboard": read_tensorboard, "mlflow": read_mlflow}


class StopInRound3(Silent):
    def on_round(self, round_number: int, seconds: float) -> None:
        if round_number == 3:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    """Forbid socket connections, ignore the user's own tracker settings, and draw no charts."""
    with pytest.MonkeyPatch.context() as patch:
        leave_charts_out(patch)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a tracker called out"))
        yield


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, offline: None) -> Path:
    """A run that was killed in its last round and resumed, with all trackers."""
    experiment, out = Experiment.model_validate(SETTINGS), tmp_path_factory.mktemp("tracked") / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(experiment, out, StopInRound3(), track=list(WRITERS))
    simulate(experiment, out, Silent(), resume=True, track=list(WRITERS))
    return out


def test_every_tracker_has_a_reader_here() -> None:
    assert set(READERS) == set(WRITERS)


@pytest.mark.integration
@pytest.mark.parametrize("name", WRITERS)
def test_each_number_of_each_round_is_tracked_once(resumed: Path, name: str) -> None:
    records = RunFolder(resumed).read_rounds()
    wanted = {(key, record.round): value for record in records for key, value in list_round(record).items()}
    # A repeated round takes a different time; all other values are the same.
    found, _ = READERS[name](resumed)
    assert set(found.values()) == {1}
    held = {(tag, step): value for tag, step, value in found}
    rounds = {key: value for key, value in held.items() if not key[0].startswith("test/")}
    assert set(rounds) == set(wanted)
    for key, value in wanted.items():
        assert key[0] == "round/seconds" or rounds[key] == pytest.approx(value, abs=1e-4)
    row = json.loads((resumed / "report.json").read_text())["test"]["federated"]["site-1"]
    assert held["test/federated_auc/site-1", 3] == pytest.approx(row["auc"], abs=1e-4)


@pytest.mark.integration
@pytest.mark.parametrize("name", WRITERS)
def test_no_image_path_or_machine_name_is_tracked(resumed: Path, name: str) -> None:
    _, told = READERS[name](resumed)
    lines = (resumed / "sites" / "site-1" / "predictions.csv").read_text().splitlines()[1:]
    for forbidden in (*(line.split(",")[1] for line in lines), str(resumed), socket.gethostname(), "words of mine"):
        assert forbidden not in told
    assert "federated_auc" in told
    assert "federation.rounds" in told


@pytest.mark.integration
@pytest.mark.parametrize("name", WRITERS)
def test_a_finished_run_can_be_tracked_again(resumed: Path, name: str) -> None:
    before, _ = READERS[name](resumed)
    done = call("report", resumed, "--format", name)
    assert done.exit_code == 0, done.output
    assert READERS[name](resumed)[0] == before


@pytest.mark.integration
def test_mlflow_writes_to_the_place_of_its_own_setting(
    resumed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    note = resumed / "tracking" / "mlflow-run.txt"
    held = note.read_text()
    assert call("report", resumed, "--format", "mlflow").exit_code == 0
    assert read_mlflow(resumed)[0]
    note.write_text(held)


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_package_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(writers, "find_spec", lambda _: None)
    with pytest.raises(InputRefusedError, match=rf"pip install 'ept-fed\[{name}\]'"):
        simulate(Experiment.model_validate(SETTINGS), tmp_path / "run", Silent(), track=[name])
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused_with_the_known_ones(micro_file: Path, tmp_path: Path) -> None:
    refused = call("simulate", micro_file, "--track", "wandb", "--out", tmp_path / "run")
    assert refused.exit_code == 2
    assert "tensorboard, mlflow" in refused.stderr


@pytest.mark.parametrize("failing", ["open", "write_round", "write_result", "close"])
def test_a_failing_store_is_left_out_and_the_others_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    class Store:
        def __init__(self, fails: str | None) -> None:
            self.calls, self._fails = Counter[str](), fails

        def __getattr__(self, method: str) -> Callable[..., None]:
            def call(*arguments: object, **options: object) -> None:
                self.calls[method] += 1
                if method == self._fails:
                    raise ConnectionError("gone")

            return call

    def open_broken(folder: Path, run: TrackedRun) -> Store:
        if failing == "open":
            raise ConnectionError("gone")
        return Store(failing)

    sound, notes = Store(None), []
    catalogue = {
        "broken": WriterInfo("", "json", open_broken),
        "sound": WriterInfo("", "json", lambda folder, run: sound),
    }
    for name, info in catalogue.items():
        monkeypatch.setitem(WRITERS, name, info)
    first, second = (RoundRecord(number, 1.0, (), (), "", {}, []) for number in (1, 2))
    with Tracker(["broken", "sound"], tmp_path, notes.append) as tracker:
        tracker.start(TrackedRun("x", "0", {}), [first])
        tracker.write_round(second)
        tracker.write_result([], done=False)
    assert notes == ["broken is no longer written: ConnectionError: gone"]
    assert sound.calls == {"write_round": 2, "write_result": 1, "close": 1}


@pytest.mark.parametrize("arguments", [("--format", "mlflow", "--site", "site-1"), ("--format", "csv", "--gallery")])
def test_options_that_would_be_ignored_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    refused = call("report", tmp_path, *arguments)
    assert refused.exit_code == 2
