import json
from pathlib import Path

import pytest

from ept_fed.reports.run.run_folder import site_folder
from ept_fed.storage.files import append_json_line, write_bytes, write_csv, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "prompts.bin"
    write_bytes(path, b"good")
    with pytest.raises(TypeError):
        write_bytes(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"good"
    assert list(tmp_path.iterdir()) == [path]


def test_undefined_numbers_become_null(tmp_path: Path) -> None:
    document = {"auc": float("nan"), "nested": [{"x": float("nan")}, (1.0, float("nan"))]}
    write_json(tmp_path / "a.json", document)
    append_json_line(tmp_path / "a.jsonl", document)
    expected = {"auc": None, "nested": [{"x": None}, [1.0, None]]}
    assert json.loads((tmp_path / "a.json").read_text()) == expected
    assert json.loads((tmp_path / "a.jsonl").read_text()) == expected


def test_lines_are_appended_one_by_one(tmp_path: Path) -> None:
    for number in range(3):
        append_json_line(tmp_path / "rounds.jsonl", {"round": number})
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]


def test_a_partially_written_line_does_not_damage_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    append_json_line(path, {"round": 1})
    path.write_bytes(path.read_bytes() + b'{"rou')
    append_json_line(path, {"round": 2})
    assert path.read_text().splitlines() == ['{"round": 1}', '{"rou', '{"round": 2}']


@pytest.mark.parametrize("row", [{"a": 1}, {"a": 1, "b": 2, "c": 3}])
def test_a_row_with_other_columns_is_refused(tmp_path: Path, row: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"lacks|not in fieldnames"):
        write_csv(tmp_path / "t.csv", [row], ["a", "b"])
    assert not list(tmp_path.iterdir())


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "t.txt", "Universitätsklinikum")
    assert (tmp_path / "t.txt").read_bytes().decode("utf-8") == "Universitätsklinikum"


@pytest.mark.parametrize("site", ["..", ".", "../../etc", "a/b", "a\\b", "Zürich Nord", "con:", "…", " "])
def test_a_sites_folder_stays_inside_the_run(site: str) -> None:
    folder = Path("/run/sites") / site_folder(site)
    assert folder.resolve().parent == Path("/run/sites")


def test_plain_site_names_are_kept_and_different_sites_have_different_folders() -> None:
    assert site_folder("vidir_modern") == "vidir_modern"
    assert site_folder("Klinik 2") == "Klinik 2"
    assert len({site_folder(name) for name in ("a/b", "a%2Fb", "a b", "a.b", "..", "%2E%2E")}) == 6
