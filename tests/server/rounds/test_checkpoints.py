"""A run that is resumed after any round, with any strategy, has the same result as an uninterrupted run."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ept_fed.errors import InputRefusedError
from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.run_plan.plan import Plan
from ept_fed.storage.files import dump_json
from server.app import create_server_app
from server.rounds.checkpoints import Checkpoint, CheckpointFolder
from server.rounds.loop import FederationResult
from server.rounds.selection import BestRound
from server.strategies.registry import AGGREGATORS
from simulations.engine.local_grid import run_locally
from tests.server.adding_sites import BAD, SABOTAGES, Observer, adding_app, make_plan


class KilledError(Exception):
    """Simulates the end of a process."""


def reread(records: list[RoundRecord]) -> list[RoundRecord]:
    """Return the records as read back from their lines in rounds.jsonl."""
    return [RoundRecord.from_line(dump_json(record.to_json())) for record in records]


def run_until(
    plan: Plan, folder: Path, lines: list[RoundRecord], killed_after: int | None
) -> tuple[FederationResult | None, list[Vector]]:
    """Run or resume a plan, end it after the checkpoint of round `killed_after`, and append its records to `lines`."""
    checkpoints, results, observer = CheckpointFolder(folder, plan), [], Observer()
    resume = checkpoints.load(lines)
    del lines[len(resume.records) - 1 if resume else 0 :]

    def save(checkpoint: Checkpoint) -> None:
        checkpoints.save(checkpoint)
        if checkpoint.records[-1].round == killed_after:
            raise KilledError

    app = create_server_app(plan, observer, results.append, resume=resume, save=save)
    sabotage = {BAD: SABOTAGES["NaN"]}
    with contextlib.suppress(KilledError):
        run_locally(app, adding_app(sabotage), plan.sites)
    lines += reread(observer.records)
    return (results[0] if results else None), observer.payloads


@pytest.mark.parametrize("strategy", sorted(AGGREGATORS))
def test_a_resumed_run_ends_like_one_that_never_stopped(strategy: str, tmp_path: Path) -> None:
    plan = make_plan(strategy=strategy, rounds=4, sites_per_round=8, patience=3, round_tolerance=0.05)
    whole_lines: list[RoundRecord] = []
    whole, payloads = run_until(plan, tmp_path / "whole", whole_lines, None)
    assert whole is not None
    lines: list[RoundRecord] = []
    for killed_after in (1, 2, 3, 4):
        ended, _ = run_until(plan, tmp_path / "killed", lines, killed_after)
        assert ended is None
    resumed, again = run_until(plan, tmp_path / "killed", lines, None)
    assert resumed is not None
    assert np.array_equal(resumed.payload, whole.payload)
    assert [payload.tobytes() for payload in again] == [whole.payload.tobytes()], "the last payload is reported again"
    assert resumed.ended == whole.ended
    without_time = [dump_json({**record.to_json(), "seconds": 0}) for record in lines]
    assert without_time == [dump_json({**record.to_json(), "seconds": 0}) for record in whole_lines]
    assert [record.to_json()["sites"] for record in resumed.rounds[:-1]] == [
        record.to_json()["sites"] for record in whole.rounds[:-1]
    ]
    assert len(payloads) == 4


def test_the_early_stops_memory_is_resumed_too(tmp_path: Path) -> None:
    plan = make_plan(rounds=10, target_auc=0.97)
    whole, _ = run_until(plan, tmp_path / "whole", [], None)
    lines: list[RoundRecord] = []
    run_until(plan, tmp_path / "killed", lines, 2)
    resumed, _ = run_until(plan, tmp_path / "killed", lines, None)
    assert whole is not None
    assert resumed is not None
    assert whole.ended == resumed.ended == "target AUC reached in round 4"
    assert np.array_equal(whole.payload, resumed.payload)


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Plan, Path, list[RoundRecord]]:
    plan, lines = make_plan(rounds=4), []
    run_until(plan, tmp_path, lines, 3)
    return plan, tmp_path, lines


@pytest.mark.parametrize("best", [BestRound(), BestRound(0.75, 2, 1, np.full(15, 0.5, np.float32))])
def test_a_checkpoint_comes_back_as_it_was_saved(
    stopped: tuple[Plan, Path, list[RoundRecord]], best: BestRound
) -> None:
    plan, folder, lines = stopped
    whole, checkpoints = CheckpointFolder(folder, plan).load(lines), CheckpointFolder(folder, plan, data="digest")
    assert whole is not None
    states = {"momentum": np.arange(15, dtype=np.float32), "state/": np.ones(15, np.float32)}
    left = Checkpoint(np.arange(15, dtype=np.float32), states, whole.records, best)
    checkpoints.save(left)
    found = checkpoints.load(lines)
    assert found is not None
    assert [record.round for record in found.records] == [1, 2, 3]
    assert (found.best.auc, found.best.since, found.best.round) == (best.auc, best.since, best.round)
    assert np.array_equal(found.best.payload, best.payload)
    assert np.array_equal(found.payload, left.payload)
    assert {name: list(vector) for name, vector in found.strategy.items()} == {
        name: list(vector) for name, vector in states.items()
    }
    with pytest.raises(InputRefusedError, match="data: its digest, ours other"):
        CheckpointFolder(folder, plan, data="other").load(lines)
    checkpoints.save(dataclasses.replace(left, payload=np.full(15, np.nan, np.float32)))
    with pytest.raises(InputRefusedError, match="does not contain a round"):
        checkpoints.load(lines)


def test_every_round_is_kept(stopped: tuple[Plan, Path, list[RoundRecord]]) -> None:
    _, folder, _ = stopped
    assert [path.name for path in sorted(folder.iterdir())] == [
        f"round-000{number}.safetensors" for number in (1, 2, 3)
    ]


def test_a_folder_without_checkpoints_starts_at_the_start(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "none", make_plan()).load([]) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "altered", "text"])
def test_a_damaged_checkpoint_is_refused_with_the_last_sound_round(
    stopped: tuple[Plan, Path, list[RoundRecord]], damage: str
) -> None:
    plan, folder, lines = stopped
    newest = folder / "round-0003.safetensors"
    whole = newest.read_bytes()
    newest.write_bytes({"cut": whole[:-5], "empty": b"", "altered": whole[:-1] + b"\x55", "text": b"hello"}[damage])
    with pytest.raises(InputRefusedError, match="remove it to continue after round 2, the last valid one") as refusal:
        CheckpointFolder(folder, plan).load(lines)
    assert [problem.field for problem in refusal.value.problems] == ["--resume"]
    newest.unlink()
    checkpoint = CheckpointFolder(folder, plan).load(lines)
    assert checkpoint is not None
    assert checkpoint.records[-1].round == 2


def test_with_nothing_sound_left_the_run_starts_again(stopped: tuple[Plan, Path, list[RoundRecord]]) -> None:
    plan, folder, lines = stopped
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputRefusedError, match="start again from round 1"):
        CheckpointFolder(folder, plan).load(lines)


def test_a_checkpoint_of_another_run_is_refused_with_both_sides(
    stopped: tuple[Plan, Path, list[RoundRecord]],
) -> None:
    plan, folder, lines = stopped
    changes: list[RoundRecord] = [
        {"run": "other"},
        {"seed": 7},
        {"backbone_digest": "other"},
        {"strategy": "krum"},
        {"sites": plan.sites[:4]},
    ]
    for change in changes:
        (key,) = change
        other = dataclasses.replace(plan, **change)
        with pytest.raises(InputRefusedError, match=f"belongs to another run .*{key}: its .*, ours "):
            CheckpointFolder(folder, other).load(lines)


def test_missing_records_of_earlier_rounds_are_refused(stopped: tuple[Plan, Path, list[RoundRecord]]) -> None:
    plan, folder, lines = stopped
    with pytest.raises(InputRefusedError, match="lacks some of the rounds 1 to 2"):
        CheckpointFolder(folder, plan).load(lines[:1])


def test_a_record_survives_its_trip_through_json() -> None:
    plan = make_plan(rounds=1)
    observer = Observer()
    run_locally(create_server_app(plan, observer, lambda _: None), adding_app({BAD: SABOTAGES["NaN"]}), plan.sites)
    (record,) = observer.records
    record.sites["site-01"].evaluation = {"auc": float("nan")}
    line = json.loads(dump_json(record.to_json()))
    again = RoundRecord.from_json(line)
    assert np.isnan(again.sites["site-01"].evaluation["auc"])
    assert dump_json(again.to_json()) == dump_json(record.to_json())
    for broken in ({**line, "schema": 2}, {"schema": 1}, {**line, "sites": {"a": {"examples": "3"}}}):
        with pytest.raises(ValueError, match=r"schema|round|sites.a"):
            RoundRecord.from_json(broken)
