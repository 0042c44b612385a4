"""Faults of a run folder are refused, all together and each with its place."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ept_fed.errors import InputRefusedError
from ept_fed.reports.run.read_run import read_run
from ept_fed.reports.run.run_folder import RunFolder

MakeRun = Callable[..., Path]


def refusal(folder: Path) -> str:
    with pytest.raises(InputRefusedError) as caught:
        read_run(folder)
    return str(caught.value)


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def predictions(folder: Path, site: str = "north") -> Path:
    return folder / "sites" / site / "predictions.csv"


def test_a_run_comes_back_as_it_was_written(make_run: MakeRun) -> None:
    run = read_run(make_run(patients=(3, 4, 5), validation=(2, 2, 2)))
    north = run.sites["north"]
    assert list(run.sites) == ["north", "south"]
    assert len(run.rounds) == 2
    assert np.bincount(north.test.labels).tolist() == [6, 8, 10]
    assert north.test.scores["federated"].shape == (24, 3)
    np.testing.assert_allclose(north.test.scores["local"].sum(1), 1, atol=1e-5)
    assert len(set(north.test.groups)) == 12
    assert north.validation is not None
    assert len(north.validation.images) == 12


def test_rows_of_another_order_give_the_same_tables(make_run: MakeRun) -> None:
    folder = make_run()
    before = read_run(folder).sites["north"].test
    lines = predictions(folder).read_text().splitlines()
    half = (len(lines) - 1) // 2
    predictions(folder).write_text("\n".join([lines[0], *lines[1 : half + 1], *reversed(lines[half + 1 :])]) + "\n")
    after = read_run(folder).sites["north"].test
    for setting, scores in before.scores.items():
        assert np.array_equal(scores, after.scores[setting])


def test_all_problems_are_reported_together(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "config.yaml").unlink()
    edit(folder / "rounds.jsonl", lambda text: text[:-20] + "\n")
    edit(predictions(folder), lambda text: text.replace(",nv,local", ",unheard,local", 1))
    predictions(folder, "south").unlink()
    sentences = refusal(folder)
    for part in (
        "config.yaml",
        "rounds.jsonl line 2",
        "not a round",
        "'unheard'",
        "not one of the run's classes",
        "south",
    ):
        assert part in sentences


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[: len(text) // 2 + 7], "incomplete|both"),
        (lambda text: text.replace("p[nv]", "p[NV]", 1), "columns missing or unknown"),
        (lambda text: text.replace(",local,", ",elsewhere,", 1), "in report.json: local, federated"),
        (lambda text: text + text.splitlines()[1] + "\n", "appears twice"),
        (lambda text: text.replace(",patient-0,", ",patient-9,", 1), "another label, group or subgroup"),
        (lambda text: "\n".join(text.splitlines()[:-1]) + "\n", "settings must match"),
        (lambda text: text.replace("akiec,0.", "akiec,7.", 1), "not probabilities"),
        (lambda text: text.replace("akiec,0.", "akiec,x.", 1), "not a number"),
    ],
)
def test_a_damaged_table_is_refused_with_its_reason(
    make_run: MakeRun, change: Callable[[str], str], reason: str
) -> None:
    folder = make_run()
    edit(predictions(folder), change)
    sentences = refusal(folder)
    assert any(part in sentences for part in reason.split("|")), sentences


def test_a_thousand_bad_lines_give_a_short_message(make_run: MakeRun) -> None:
    folder = make_run()
    edit(predictions(folder), lambda text: text.replace(",nv,", ",unheard,"))
    assert refusal(folder).count("\n") <= 20


def test_another_schema_is_refused_with_its_number(make_run: MakeRun) -> None:
    folder = make_run()
    document = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(document | {"schema": 2}))
    assert "schema = 2" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"classes": 3}, "classes"),
        ({"seed": "0"}, "seed"),
        ({"test_images": {"north": "many"}}, "test_images.north"),
        ({"traffic": {"north": {"bytes": 1}}}, "traffic.north.sent_to_site"),
        ({"payload": {"bytes": 4, "layout": [["sinks", 7]]}}, "payload.layout.0.1"),
        ({"counted": {"counted_by": "server"}}, "counted.messages_from_site"),
        ({"privacy": {"north": {"epsilon": 1.0}}}, "privacy.north.covers"),
        ({"data": [7]}, "data.0"),
    ],
)  # fmt: skip
def test_a_report_with_wrong_types_is_refused_with_the_place(
    make_run: MakeRun, changes: dict[str, object], place: str
) -> None:
    folder = make_run()
    document = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(document | changes))
    assert f"is not the report of a run ({place}: " in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "place"),
    [({"round": "1"}, "round"), ({"sites": {"north": {"examples": "1"}}}, "sites.north.examples"),
     ({"refused": [{}]}, "refused.0.site"), ({"aggregated": "north"}, "aggregated")],
)  # fmt: skip
def test_a_round_with_wrong_types_is_refused_with_line_and_place(
    make_run: MakeRun, changes: dict[str, object], place: str
) -> None:
    folder = make_run()
    first, second = (folder / "rounds.jsonl").read_text().splitlines()
    (folder / "rounds.jsonl").write_text(f"{first}\n{json.dumps(json.loads(second) | changes)}\n{'[' * 100_000}\n")
    sentences = refusal(folder)
    assert "rounds.jsonl line 2" in sentences
    assert f"not a round ({place}: " in sentences
    assert "rounds.jsonl line 3" in sentences


def test_a_partially_written_line_is_left_out(make_run: MakeRun) -> None:
    folder = make_run()
    edit(folder / "rounds.jsonl", lambda text: text[:-20])
    assert len(read_run(folder).rounds) == len(RunFolder(folder).read_rounds()) == 1


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "absent")


def test_without_groups_each_image_is_its_own_group_and_this_is_reported(make_run: MakeRun) -> None:
    folder = make_run(patients=(2, 2, 2))
    for patient in range(6):
        edit(predictions(folder), lambda text, patient=patient: text.replace(f",patient-{patient},", ",,"))
    north = read_run(folder).sites["north"]
    assert len(set(north.test.groups)) == 12
    assert "12 of 12 test images have no patient id" in north.notes[0]


def test_images_without_finite_probabilities_are_left_out_under_every_setting(make_run: MakeRun) -> None:
    folder = make_run(patients=(2, 2, 2))
    lines = predictions(folder).read_text().splitlines()
    cells = lines[1].split(",")
    predictions(folder).write_text("\n".join([lines[0], ",".join([*cells[:6], "nan", "", "nan"]), *lines[2:]]) + "\n")
    north = read_run(folder).sites["north"]
    assert len(north.test.images) == 11
    assert north.test.scores["federated"].shape == (11, 3)
    assert "1 of 12 test images have no finite probabilities" in north.notes[0]
