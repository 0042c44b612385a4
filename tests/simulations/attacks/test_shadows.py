"""The attack with shadow runs: what it draws, that it is resumed, what it finds where it must, and what it refuses."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ept_fed.cli.main import app
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.progress import Silent
from ept_fed.reports.run.read_run import read_run
from simulations.attacks.shadows.attack import attack_with_shadows
from simulations.attacks.shadows.pool import ShadowPool, build_pool
from simulations.attacks.shadows.train import Seen, ShadowTrainer
from simulations.engine.reopen_run import reopen_run
from simulations.engine.simulate import simulate
from simulations.engine.virtual_sites import VirtualFederation
from tests.conftest import MICRO_RUN, leave_charts_out

SHADOWS, TARGETS = 10, 2
# Three images per class at each of two sites, tuned until the prompts and the shared head have memorised them.
MEMORISING = (
    *MICRO_RUN, "data.phantom_sites=2", "evaluation.baselines=[]", "federation.share=prompts+head",
    "training.head_lr=0.1", "training.epochs=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(shared_micro: Callable[..., Experiment], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shadowed")
    with pytest.MonkeyPatch.context() as patch:
        leave_charts_out(patch)
        simulate(shared_micro(*MEMORISING), folder / "run", Silent())
    return folder / "run"


@pytest.fixture(scope="module")
def attacked(finished: Path) -> Path:
    """Return the run with the results of an attack, for reading only."""
    folder = Path(shutil.copytree(finished, finished.parent / "attacked"))
    attack_with_shadows(folder, quiet, targets=TARGETS, shadows=SHADOWS)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def quiet(_what: str, _share: float) -> None:
    pass


def opened(folder: Path) -> tuple[VirtualFederation, ShadowPool]:
    federation = reopen_run(read_run(folder))
    return federation, build_pool(federation, seed=0, most=100)


def test_a_shadow_run_has_as_many_images_of_each_site_and_class_and_half_of_the_candidates(finished: Path) -> None:
    federation, pool = opened(finished)
    for number in range(6):
        drawn = pool.draw(0, number)
        assert drawn == pool.draw(0, number)
        for site, data in federation.data.sites.items():
            images = pool.images[site]
            assert Counter(images.labels[drawn[site]].tolist()) == Counter(data.train.labels.tolist())
            inside = {images.records[place].group for place in drawn[site]}
            outside = {images.records[place].group for place in set(range(len(images))) - set(drawn[site])}
            assert not inside & outside
        member = pool.membership(drawn)
        assert member.sum() * 2 == len(member)
    assert pool.draw(0, 0) != pool.draw(0, 1)
    assert pool.draw(0, 0) != pool.draw(1, 0)


def test_candidates_are_the_runs_images_and_as_many_of_other_patients_of_the_same_site_and_class(
    finished: Path,
) -> None:
    federation, pool = opened(finished)
    candidates = pool.candidates
    assert np.array_equal(candidates.member, pool.membership(pool.trained))
    for index, (site, data) in enumerate(federation.data.sites.items()):
        trained = {record.image for record in data.train.records}
        patients = {record.group for record in data.train.records}
        own = candidates.site == index
        counts = Counter(zip(candidates.label[own].tolist(), candidates.member[own].tolist(), strict=True))
        assert all(counts[label, True] == counts[label, False] for label in range(len(data.classes)))
        for place, member, group in zip(
            candidates.place[own], candidates.member[own], candidates.group[own], strict=True
        ):
            assert (pool.images[site].records[place].image in trained) == member
            assert (group in patients) == member
    few = build_pool(federation, seed=0, most=6).candidates
    assert 0 < len(few) < len(candidates)


def test_the_attack_finds_members_of_what_it_must_and_none_at_random(attacked: Path) -> None:
    found = json.loads((attacked / "attack-full.json").read_text())
    with (attacked / "attack-full.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found["rows"])
    rows = {(r["part"], r["seen"], r["attack"], r["target"]): r for r in found["rows"]}
    turn, online = "each shadow run in turn", "likelihood ratio, online"
    (known,) = [r for (part, _, attack, target), r in rows.items() if (part, attack, target) == ("known", online, turn)]
    assert known["auc_low"] > 0.75
    # Trained until it has memorised them, the run itself gives its members away, single updates more than the average.
    seen = {r["seen"]: r["auc"] for (part, _, a, t), r in rows.items() if (part, a, t) == ("membership", online, turn)}
    assert min(seen.values()) > 0.6
    assert {a for part, _, a, _ in rows if part == "crafted"} == {
        f"prompts crafted for one image, gate {g}" for g in ("on", "off")
    }
    for (part, *_), row in rows.items():
        assert part == "crafted" or row["runs"] * found["candidates"] == row["members"] + row["others"]
        if part == "control":
            assert abs(row["auc"] - 0.5) < (0.08 if row["runs"] > 1 else 0.2)
    assert {row["target"] for row in rows.values()} == {"this run", turn}
    assert found["shadows"] == SHADOWS
    assert not found["notes"]


def test_an_interrupted_attack_trains_nothing_twice_and_ends_as_if_it_had_not_been(
    attacked: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, trained = ShadowTrainer.train, []

    def interrupted(trainer: ShadowTrainer, number: int) -> Seen:
        if trained:
            raise KeyboardInterrupt
        trained.append(number)
        return train(trainer, number)

    with monkeypatch.context() as patch:
        patch.setattr(ShadowTrainer, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attack_with_shadows(run, quiet, targets=TARGETS, shadows=SHADOWS)
    for number in range(1, SHADOWS - 1):
        shutil.copy(attacked / "shadows" / f"{number:03d}.npz", run / "shadows")
    (run / "shadows" / "005.npz").write_bytes(b"cut off")

    def counted(trainer: ShadowTrainer, number: int) -> Seen:
        trained.append(number)
        return train(trainer, number)

    monkeypatch.setattr(ShadowTrainer, "train", counted)
    attack_with_shadows(run, quiet, targets=TARGETS, shadows=SHADOWS)
    assert trained == [0, 5, SHADOWS - 1]
    rows = [json.loads((folder / "attack-full.json").read_text())["rows"] for folder in (attacked, run)]
    assert rows[0] == rows[1]


@pytest.mark.integration
def test_two_processes_train_the_shadow_runs_of_one(attacked: Path, run: Path) -> None:
    (run / "shadows").mkdir()
    for number in range(2, SHADOWS):
        shutil.copy(attacked / "shadows" / f"{number:03d}.npz", run / "shadows")
    attack_with_shadows(run, quiet, targets=TARGETS, shadows=SHADOWS, jobs=2)
    rows = [json.loads((folder / "attack-full.json").read_text())["rows"] for folder in (attacked, run)]
    assert rows[0] == rows[1]


def refused(run: Path, **arguments: int) -> str:
    with pytest.raises(InputRefusedError) as refusal:
        attack_with_shadows(run, quiet, **arguments)
    (problem,) = refusal.value.problems
    return f"{problem.field}: {problem.fix}"


def test_shadow_runs_of_another_attack_and_too_few_of_them_are_refused(run: Path, attacked: Path) -> None:
    assert refused(run, shadows=7).startswith(
        "--shadows: every image must be in, and out of, 5 shadow runs; use at least 10"
    )
    assert not (run / "shadows").exists()
    shutil.copytree(attacked / "shadows", run / "shadows")
    assert "remove the folder" in refused(run, shadows=SHADOWS, seed=1)


def test_statistics_and_an_unfinished_run_are_refused(
    shared_micro: Callable[..., Experiment], tmp_path: Path, run: Path, undrawn: None
) -> None:
    statistics = (
        *MICRO_RUN, "data.phantom_sites=2", "evaluation.baselines=[]", "training.head=lda",
        "federation.share=prompts+head",
    )  # fmt: skip
    simulate(shared_micro(*statistics), tmp_path / "statistics", Silent())
    assert "class_statistics" in refused(tmp_path / "statistics")
    (run / "report.json").unlink()
    assert "report.json" in refused(run)


def test_the_command_prints_the_tables_and_refuses_options_of_the_quick_attack(attacked: Path, run: Path) -> None:
    shutil.copytree(attacked / "shadows", run / "shadows")
    arguments = ["audit", "attack", str(run), "--strength", "full", "--shadows", str(SHADOWS), "--targets", "2"]
    said = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert said.exit_code == 0, said.output
    for text in ("this run", "each shadow run in turn", "found at 0.1 %", "Assumed (known)", "Assumed (control)"):
        assert text in said.output
    wrong = CliRunner().invoke(app, [*arguments, "--sites", "site-1", "--rounds", "1"])
    assert wrong.exit_code == 2
    assert "--sites" in wrong.output
    assert "--rounds" in wrong.output
