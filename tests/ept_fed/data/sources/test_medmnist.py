from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ept_fed.config.data import MedMNISTSettings
from ept_fed.data.sources.medmnist import read_medmnist
from ept_fed.errors import InputRefusedError

Write = Callable[..., MedMNISTSettings]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_archive(
        changes: dict[str, np.ndarray | None] | None = None, width: int = 1, **settings: object
    ) -> MedMNISTSettings:
        rng, arrays = np.random.default_rng(0), {}
        for split, count in (("train", 12), ("val", 4), ("test", 6)):
            arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            arrays[f"{split}_labels"] = (np.arange(count * width) % 2).reshape(count, width).astype(np.uint8)
        merged = {key: array for key, array in (arrays | (changes or {})).items() if array is not None}
        np.savez(tmp_path / "medmnist.npz", **merged)
        return MedMNISTSettings.model_validate({"root": tmp_path} | settings)

    return write_archive


def _refuse(settings: MedMNISTSettings) -> str:
    with pytest.raises(InputRefusedError) as caught:
        read_medmnist(settings)
    return str(caught.value)


def test_archive_keeps_its_splits(write: Write) -> None:
    catalog = read_medmnist(write())
    assert Counter(record.split for record in catalog.records) == {"train": 12, "validation": 4, "test": 6}
    assert catalog.classes == ("0", "1")
    assert catalog.store.read(catalog.records[-1].image).shape == (28, 28, 3)
    assert catalog.store.find_missing(record.image for record in catalog.records) == []


def test_color_archive_is_read(write: Write) -> None:
    catalog = read_medmnist(write({"train_images": np.full((12, 8, 9, 3), 7, np.uint8)}, classes=("no", "yes")))
    assert catalog.classes == ("no", "yes")
    assert catalog.store.read("train/3").shape == (8, 9, 3)


def test_multi_hot_labels_are_read(write: Write) -> None:
    catalog = read_medmnist(write(width=3, task="multi_label"))
    assert [record.labels for record in catalog.records[:2]] == [(1,), (0, 2)]


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({"val_labels": None, "test_images": None}, {}, "lacks val_labels, test_images"),
        ({"val_labels": np.zeros((3, 1), np.uint8)}, {}, "4 images but 3 labels"),
        ({"val_labels": np.zeros((4, 2), np.uint8)}, {}, "different widths"),
        ({"val_images": np.zeros((4, 28, 28))}, {}, "need uint8"),
        ({"val_images": np.zeros((4, 28, 28, 28), np.uint8)}, {}, "need uint8"),
        ({"val_labels": np.zeros((4, 1))}, {}, "need whole numbers"),
        ({"val_labels": np.full((4, 1), 2, np.uint8)}, {"classes": ("a", "b")}, "holds [2]"),
        ({"val_labels": np.full((4, 1), -1)}, {}, "holds [-1]"),
        ({}, {"task": "multi_label"}, "data.task=single_label"),
    ],
)
def test_each_defect_is_refused(
    write: Write, changes: dict[str, np.ndarray | None], settings: dict[str, object], said: str
) -> None:
    assert said in _refuse(write(changes, **settings))


def test_multi_hot_archive_needs_the_multi_label_task(write: Write) -> None:
    assert "data.task=multi_label" in _refuse(write(width=3))


def test_multi_hot_labels_other_than_0_and_1_are_refused(write: Write) -> None:
    assert "holds [5]" in _refuse(write({"val_labels": np.full((4, 3), 5)}, width=3, task="multi_label"))


def test_wrong_number_of_class_names_is_refused(write: Write) -> None:
    assert "3 label columns" in _refuse(write(width=3, task="multi_label", classes=("a", "b")))


def test_pickled_objects_are_never_loaded(write: Write) -> None:
    assert "cannot be read" in _refuse(write({"train_labels": np.array([{}] * 12, dtype=object)}))


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_other_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "medmnist.npz").write_bytes(content)
    assert "data.archive" in _refuse(MedMNISTSettings(root=tmp_path))


def test_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert "not an .npz" in _refuse(MedMNISTSettings(root=tmp_path, archive=Path("one.npy")))
