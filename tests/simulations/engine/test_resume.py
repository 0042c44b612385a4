"""`--resume`: runs that it continues, runs that it refuses, and files that it does not change."""

import csv
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

import ept_fed
from ept_fed.cli.main import app
from ept_fed.config.experiment import Experiment
from ept_fed.data.datasets.prepare import PreparedData
from ept_fed.errors import InputRefusedError
from ept_fed.progress import Silent
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.storage.checkpoint_file import write_checksummed
from server.rounds.checkpoints import Checkpoint, CheckpointFolder
from simulations.engine import simulate as simulate_module
from simulations.engine.simulate import simulate
from tests.conftest import MICRO_RUN, leave_charts_out

Micro = Callable[..., Experiment]
# Two sites and no baselines, because these tests run many federations.
SMALL = ("data.phantom_sites=2", "evaluation.baselines=[]")
STAGES = (
    SMALL[0],
    "federation.rounds=3",
    'evaluation.baselines=["local","centralised"]',
    "federation.strategy=fedavgm",
)


class StopHere(Silent):
    """Raises KeyboardInterrupt, like the end of the process, when a stage reaches a given round."""

    def __init__(self, stage: str, round_number: int) -> None:
        self._at, self._stage = (stage, round_number), ""

    def on_stage(self, stage: str, sites: tuple[str, ...], rounds: int) -> None:
        self._stage = stage

    def on_round(self, round_number: int, seconds: float) -> None:
        if (self._stage, round_number) == self._at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def killed(shared_micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    """Return a run that was killed after its sites had trained round 3 and before the server had saved that round."""
    experiment, out = shared_micro(*SMALL, "federation.rounds=3"), tmp_path_factory.mktemp("killed") / "run"
    save = CheckpointFolder.save

    def kill_before_the_third(folder: CheckpointFolder, checkpoint: Checkpoint) -> None:
        if checkpoint.records[-1].round == 3:
            raise KeyboardInterrupt
        save(folder, checkpoint)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CheckpointFolder, "save", kill_before_the_third)
        simulate(experiment, out, Silent())
    return experiment, out


@pytest.fixture
def stopped(killed: tuple[Experiment, Path], tmp_path: Path) -> tuple[Experiment, Path]:
    """Return the settings and a copy of the killed run."""
    experiment, out = killed
    return experiment, Path(shutil.copytree(out, tmp_path / "run"))


@pytest.fixture(scope="module")
def whole(shared_micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Any]]:
    """Return the folder and the report of a run of all stages that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        leave_charts_out(patch)
        return out, simulate(shared_micro(*STAGES), out, Silent())


def test_a_run_that_was_never_started_starts(micro: Micro, tmp_path: Path) -> None:
    out = tmp_path / "new"
    assert simulate(micro(*SMALL, "federation.rounds=1"), out, Silent(), resume=True)["status"] == "done"


@pytest.mark.integration
@pytest.mark.parametrize("stop", [("federated", 1), ("federated", 3), ("local", 2), ("centralised", 1)])
def test_whatever_stage_was_stopped_the_end_is_the_same(
    micro: Micro, tmp_path: Path, whole: tuple[Path, Mapping[str, Any]], stop: tuple[str, int]
) -> None:
    experiment, out = micro(*STAGES), tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        simulate(experiment, out, StopHere(*stop))
    resumed = simulate(experiment, out, Silent(), resume=True)
    # A reply contains the site's training time, whose number of digits changes the bytes.
    ours, theirs = ([{**row, "bytes_from_site": 0} for row in run["rows"]] for run in (resumed, whole[1]))
    assert ours == theirs
    files = sorted((whole[0] / "prompts").iterdir())
    assert len(files) == 1 + 3
    for path in files:
        assert np.array_equal(load_file(path)["sinks"], load_file(out / "prompts" / path.name)["sinks"])


def test_a_finished_run_is_reported_and_not_run_again(
    micro: Micro, micro_run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not (micro_run_copy / "state").exists()
    monkeypatch.setattr(simulate_module, "prepare_federation", lambda _: pytest.fail("the run is finished"))
    again = simulate(micro(*MICRO_RUN), micro_run_copy, Silent(), resume=True)
    with (micro_run_copy / "report.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in row.items()} for row in again["rows"]] == written
    assert again["status"] == "done"


def test_every_setting_that_differs_is_named_with_both_values(stopped: tuple[Experiment, Path], micro: Micro) -> None:
    _, out = stopped
    other = micro(*SMALL, "federation.rounds=4", "training.prompt_lr=0.7", "name=other", "model.device=cpu")
    with pytest.raises(InputRefusedError) as refusal:
        simulate(other, out, Silent(), resume=True)
    problems = {problem.field: str(problem) for problem in refusal.value.problems}
    assert set(problems) == {"federation.rounds", "training.prompt_lr"}
    assert "4" in problems["federation.rounds"]
    assert "the run to resume has 3" in problems["federation.rounds"]


def test_a_folder_that_holds_something_else_is_refused(micro: Micro, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputRefusedError, match="contains no run to resume"):
        simulate(micro(), tmp_path, Silent(), resume=True)
    assert [path.name for path in tmp_path.iterdir() if path.name != "micro.yaml"] == ["thesis.txt"]


def test_without_the_sites_states_a_run_is_not_resumed_from_other_heads(stopped: tuple[Experiment, Path]) -> None:
    experiment, out = stopped
    shutil.rmtree(out / "state" / "federated" / "site-2")
    with pytest.raises(InputRefusedError, match="site-2's state of round 2 is gone"):
        simulate(experiment, out, Silent(), resume=True)


def test_a_sites_damaged_state_is_refused(stopped: tuple[Experiment, Path]) -> None:
    experiment, out = stopped
    needed = out / "state" / "federated" / "site-2" / "round-0002.safetensors"
    needed.write_bytes(needed.read_bytes()[:-4])
    with pytest.raises(InputRefusedError, match="cut short"):
        simulate(experiment, out, Silent(), resume=True)


def test_a_missing_state_between_others_is_not_passed_over(stopped: tuple[Experiment, Path]) -> None:
    experiment, out = stopped
    folder = out / "state" / "federated" / "site-1"
    assert sorted(path.name for path in folder.iterdir())[-1] == "round-0003.safetensors"
    (folder / "round-0002.safetensors").unlink()
    with pytest.raises(InputRefusedError, match="site-1: the state before round 3 is no longer kept"):
        simulate(experiment, out, Silent(), resume=True)


def test_other_images_or_labels_are_not_resumed_with(
    stopped: tuple[Experiment, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, out = stopped
    monkeypatch.setattr(PreparedData, "digest", "other")
    with pytest.raises(InputRefusedError, match=r"belongs to another run \(data: its .*, ours other\)"):
        simulate(experiment, out, Silent(), resume=True)


@pytest.mark.parametrize("content", ["{}", "[]", "5", "{"])
def test_a_report_that_is_none_is_refused(stopped: tuple[Experiment, Path], content: str) -> None:
    experiment, out = stopped
    (out / "report.json").write_text(content)
    with pytest.raises(InputRefusedError, match=r"report\.json"):
        simulate(experiment, out, Silent(), resume=True)


def test_a_line_that_is_no_record_is_refused(stopped: tuple[Experiment, Path]) -> None:
    experiment, out = stopped
    lines = (out / "rounds.jsonl").read_text().splitlines()
    (out / "rounds.jsonl").write_text("\n".join(["5", *lines[1:]]) + "\n")
    with pytest.raises(InputRefusedError, match="is damaged"):
        simulate(experiment, out, Silent(), resume=True)


def test_a_baselines_damaged_state_is_refused(micro: Micro, tmp_path: Path) -> None:
    experiment, out = micro(SMALL[0], "federation.rounds=1"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(experiment, out, StopHere("local", 1))
    (path,) = (out / "state" / "local" / "site-1").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputRefusedError, match="cut short"):
        simulate(experiment, out, Silent(), resume=True)


def test_a_kill_before_the_settings_were_written_leaves_a_free_folder(micro: Micro, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".config.yaml.abcd1234").write_text("ha")
    assert simulate(micro(*SMALL, "federation.rounds=1"), out, Silent(), resume=True)["status"] == "done"


def test_a_line_that_was_cut_off_is_written_again(stopped: tuple[Experiment, Path]) -> None:
    experiment, out = stopped
    with (out / "rounds.jsonl").open("a") as file:
        file.write('{"schema": 1, "rou')
    (out / "checkpoints" / ".round-0003.safetensors.abcd1234").write_bytes(b"half")
    assert simulate(experiment, out, Silent(), resume=True)["status"] == "done"
    assert len((out / "rounds.jsonl").read_text().splitlines()) == 3
    assert not [path for path in out.rglob(".*") if path.is_file()]


def test_damaged_lines_within_the_rounds_are_refused(stopped: tuple[Experiment, Path]) -> None:
    experiment, out = stopped
    text = (out / "rounds.jsonl").read_text()
    (out / "rounds.jsonl").write_text("{broken\n" + text)
    with pytest.raises(InputRefusedError, match="is damaged"):
        simulate(experiment, out, Silent(), resume=True)
    assert RunFolder(out).checkpoints.exists()


@pytest.mark.integration
def test_personal_models_are_settings_of_their_own(micro: Micro, tmp_path: Path) -> None:
    personal = {"ditto": 0.1, "fine_tune_epochs": 1, "interpolate": "true"}
    one_round = (SMALL[0], "federation.rounds=1")
    experiment = micro(*one_round, *(f"personalisation.{key}={value}" for key, value in personal.items()))
    report = simulate(experiment, tmp_path / "run", Silent())
    assert report["settings"] == ["local", "federated", "fine-tuned", "interpolated", "ditto"]
    plain = simulate(micro(*one_round), tmp_path / "plain", Silent())
    for row, without in zip(report["rows"], plain["rows"], strict=True):
        assert row["federated_loss"] == without["federated_loss"]
    losses = {setting: report["rows"][0][f"{setting}_loss"] for setting in report["settings"]}
    assert losses["fine-tuned"] != losses["federated"]
    assert losses["ditto"] != losses["federated"]


@pytest.mark.integration
def test_an_early_stop_leaves_heads_of_the_same_round_as_the_prompts(micro: Micro, tmp_path: Path) -> None:
    early = micro(*SMALL, "federation.rounds=4", "federation.target_auc=0.01", "training.schedule=constant")
    report = simulate(early, tmp_path / "early", Silent())
    assert report["ended"] == "target AUC reached in round 1"
    one = simulate(micro(*SMALL, "federation.rounds=1", "training.schedule=constant"), tmp_path / "one", Silent())
    assert [row["federated_loss"] for row in report["rows"]] == [row["federated_loss"] for row in one["rows"]]


def test_a_run_of_another_version_is_refused_before_its_settings_are_read(tmp_path: Path) -> None:
    """The version is in the first line of config.yaml, or for version 0.1.0 only in every checkpoint."""
    out = tmp_path / "run"
    for config, checkpoint in (("# Written by ept-fed 0.1.9\n", None), ("", "0.1.0")):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / "config.yaml").write_text(f"{config}training: {{head: common+own}}\n")
        if checkpoint is not None:
            write_checksummed(out / "checkpoints" / "round-0001.safetensors", {}, {"code": checkpoint})
        done = CliRunner().invoke(app, ["simulate", "--resume", "--out", str(out)])
        assert done.exit_code == 2
        assert f"was written by ept-fed {checkpoint or '0.1.9'}, this is {ept_fed.__version__}" in done.output
        assert "head" not in done.output


def test_a_run_of_this_version_names_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create("name: x\n")
    folder.require_version()
    assert (folder.path / "config.yaml").read_text() == f"# Written by ept-fed {ept_fed.__version__}\nname: x\n"
