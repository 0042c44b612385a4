"""MedFMC: test lists in the challenge's three formats, with real file names of the challenge."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ept_fed.config.data import MedFMCSettings
from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.data.datasets.prepare import prepare_data
from ept_fed.data.sources.medfmc import MEDFMC_CLASSES, ListedImage, parse_list, read_medfmc
from ept_fed.data.sources.registry import open_catalog
from ept_fed.errors import InputRefusedError

COLON = "2019-07506-1-5-5_2019-05-29 06_09_14-lv1-14171-23920-4547-5510p{:04d}.png"
CHEST = "DX.1.2.392.200046.100.2.1.69131194618.191116084230.1.1.{}.png"
ENDO = "13333_2021.12_{:04d}_55977222.png"
CHEST_CODE = "1,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,1"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., MedFMCSettings]:
    """Return a function that writes lists by file name, and an image for every name in them."""

    def build(lists: dict[str, str], *, absent: tuple[str, ...] = (), **settings: object) -> MedFMCSettings:
        (tmp_path / "images").mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        for name, text in lists.items():
            (tmp_path / name).write_text(text)
            for line in text.splitlines():
                image = line[: line.find(".png") + 4]
                if ".png" in line and image not in absent:
                    pixels = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(tmp_path / "images" / image)
        return MedFMCSettings.model_validate({"root": tmp_path, **settings})

    return build


def colon(numbers: range, label: int) -> str:
    return "".join(f"{COLON.format(number)} {label}\n" for number in numbers)


@pytest.mark.parametrize(
    ("dataset", "line", "expected"),
    [
        ("colon", f"{COLON.format(18)} 1", ListedImage(COLON.format(18), (1,))),
        ("chest", f"{CHEST.format(1)} {CHEST_CODE}", ListedImage(CHEST.format(1), (0, 4, 18))),
        ("endo", f"{ENDO.format(6)} 1 1 0 0", ListedImage(ENDO.format(6), (0, 1))),
        ("endo", "a name with 1 0 in it.png 0 0 0 0", ListedImage("a name with 1 0 in it.png", ())),
    ],
)
def test_all_three_formats_parse(dataset: str, line: str, expected: ListedImage) -> None:
    listed, problems = parse_list(f"\n{line}\r\n{line}\n", MEDFMC_CLASSES[dataset], "list")
    assert listed == [expected]
    assert problems == []


@given(
    st.lists(st.tuples(st.text("ab 01_-.", max_size=12), st.lists(st.booleans(), min_size=4, max_size=4)), max_size=8),
    st.sampled_from([" ", ","]),
)
def test_a_list_is_read_back_for_any_file_name(rows: list[tuple[str, list[bool]]], comma: str) -> None:
    named = {f"x{number}{name}y.png": flags for number, (name, flags) in enumerate(rows)}
    text = "".join(f"{name} {comma.join(str(int(flag)) for flag in flags)}\n" for name, flags in named.items())
    listed, problems = parse_list(text, MEDFMC_CLASSES["endo"], "list")
    assert problems == []
    expected = {name: tuple(place for place, flag in enumerate(flags) if flag) for name, flags in named.items()}
    assert {entry.image: entry.labels for entry in listed} == expected


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    listed, problems = parse_list(text, MEDFMC_CLASSES["colon"], "list")
    assert all(entry.labels in ((0,), (1,)) for entry in listed)
    assert all(problem.field == "list" for problem in problems)


@pytest.mark.parametrize(
    ("dataset", "line", "said"),
    [
        ("colon", "image.png", "must be a file name"),
        ("colon", "image 1", "must be a file name"),
        ("colon", "image.png 2", "one index below 2"),
        ("colon", "image.png 1 0 1", "one index below 2"),
        ("endo", "image.png 1 0 0", "needs 4 values 0 or 1"),
        ("endo", "image.png 1,0,0,3", "needs 4 values 0 or 1"),
        ("chest", "image.png 7", "needs 19 values 0 or 1"),
        ("endo", "image.png 1 0 0 0\nimage.png 0 0 0 1", "different labels"),
    ],
)
def test_an_invalid_line_is_refused(dataset: str, line: str, said: str) -> None:
    _, (problem,) = parse_list(line, MEDFMC_CLASSES[dataset], "data.train_list")
    assert said in problem.fix
    assert problem.field == "data.train_list"


def test_lists_are_read_back_exactly(write: Callable[..., MedFMCSettings]) -> None:
    settings = write(
        {"trainval.txt": colon(range(3), 0) + colon(range(3, 5), 1), "test_WithLabel.txt": colon(range(9, 11), 1)}
    )
    catalog = read_medfmc(settings)
    assert catalog.classes == ("negative", "positive")
    assert [(record.image, record.labels, record.split) for record in catalog.records] == [
        *((COLON.format(number), (0,), "train") for number in range(3)),
        *((COLON.format(number), (1,), "train") for number in (3, 4)),
        *((COLON.format(number), (1,), "test") for number in (9, 10)),
    ]
    assert catalog.store.read(COLON.format(0)).shape == (12, 10, 3)


@pytest.mark.parametrize("sampling", ["exp1", "exp2", "exp3", "exp4", "exp5"])
def test_a_published_sampling_is_found_by_its_name(write: Callable[..., MedFMCSettings], sampling: str) -> None:
    lists = {
        f"endo_5-shot_train_{sampling}.txt": f"{ENDO.format(1)} 1 0 0 0\n{ENDO.format(1)} 1 0 0 0\n",
        f"endo_5-shot_val_{sampling}.txt": f"{ENDO.format(2)} 0 1 0 0\n",
        "test_WithLabel.txt": f"{ENDO.format(3)} 0 0 1 1\n",
    }
    settings = write(lists, dataset="endo", task="multi_label", sampling=sampling, sampling_shots=5)
    splits = {record.image: record.split for record in read_medfmc(settings).records}
    assert splits == {ENDO.format(1): "train", ENDO.format(2): "validation", ENDO.format(3): "test"}


def test_overlapping_lists_are_refused_unless_validation_drops_the_overlap(
    write: Callable[..., MedFMCSettings],
) -> None:
    lists = {
        "colon_1-shot_train_exp1.txt": colon(range(2), 0),
        "colon_1-shot_val_exp1.txt": colon(range(1, 4), 0),
        "test_WithLabel.txt": colon(range(3, 5), 0),
    }
    settings = write(lists, sampling="exp1", sampling_shots=1)
    with pytest.raises(InputRefusedError) as refusal:
        read_medfmc(settings)
    problems = {problem.field: problem for problem in refusal.value.problems}
    assert problems["data.validation_list"].value == [COLON.format(1)]
    assert "leave_out" in problems["data.validation_list"].fix
    assert problems["data.test_list"].value == [COLON.format(3)]
    (settings.root / "test_WithLabel.txt").write_text(colon(range(8, 9), 0))
    Image.new("RGB", (4, 4)).save(settings.root / "images" / COLON.format(8))
    kept = read_medfmc(settings.model_copy(update={"overlap": "leave_out"})).records
    assert [record.image for record in kept if record.split == "validation"] == [COLON.format(2), COLON.format(3)]


def test_a_pattern_finds_the_patient_and_a_straddling_patient_is_refused(write: Callable[..., MedFMCSettings]) -> None:
    lists = {"trainval.txt": colon(range(2), 0), "test_WithLabel.txt": colon(range(4, 6), 1)}
    settings = write(lists, group_pattern=r"^(\d{4}-\d{5})-")
    assert {record.group for record in read_medfmc(settings).records} == {"2019-07506"}
    with pytest.raises(InputRefusedError, match="more than one split"):
        open_catalog(settings, seed=0)
    with pytest.raises(InputRefusedError, match="finds no patient in 4 file name"):
        read_medfmc(settings.model_copy(update={"group_pattern": "^(D.*?)_"}))


def test_absent_images_are_reported_with_all_other_problems(write: Callable[..., MedFMCSettings]) -> None:
    lists = {"trainval.txt": colon(range(3), 0) + "odd line\n", "test_WithLabel.txt": colon(range(9, 11), 1)}
    settings = write(lists, absent=(COLON.format(1), COLON.format(9)), classes=("positive", "bad"))
    with pytest.raises(InputRefusedError) as refusal:
        read_medfmc(settings)
    fields = [problem.field for problem in refusal.value.problems]
    assert fields == ["data.classes", "data.train_list", "data.images"]
    assert refusal.value.problems[2].value == [COLON.format(1), COLON.format(9)]


def test_a_list_that_names_an_absent_image_stops_a_run(write: Callable[..., MedFMCSettings]) -> None:
    lists = {
        "trainval.txt": colon(range(8), 0) + colon(range(20, 28), 1),
        "test_WithLabel.txt": colon(range(9, 11), 0) + colon(range(30, 32), 1),
    }
    settings = write(lists, absent=(COLON.format(9),), partition={"kind": "iid", "sites": 2})
    with pytest.raises(InputRefusedError, match=r"0009\.png is missing"):
        prepare_data(settings, InputSpec(16, (0.5,) * 3, (0.5,) * 3, "bilinear"), seed=0)


def test_a_missing_or_empty_list_is_refused(write: Callable[..., MedFMCSettings]) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        read_medfmc(write({"trainval.txt": "\n"}))
    assert [problem.field for problem in refusal.value.problems] == ["data.train_list", "data.test_list"]
