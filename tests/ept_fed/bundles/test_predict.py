import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ept_fed.bundles.bundle import Bundle, read_bundle
from ept_fed.bundles.find_images import find_images
from ept_fed.bundles.model import CalibratedModel, load_model
from ept_fed.bundles.predict import PREDICTED, predict_images, read_image, write_predictions

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def bundle(finished: Any) -> Bundle:
    return read_bundle(finished.bundle)


@pytest.fixture(scope="module")
def model(finished: Any, bundle: Bundle) -> CalibratedModel:
    return load_model(bundle, weights=str(finished.weights), device="cpu")


def draw(*shape: int, kind: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(kind).max, shape, dtype=kind)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with readable and unreadable image files."""
    folder = tmp_path_factory.mktemp("mixed")
    Image.fromarray(draw(80, 90, 3)).save(folder / "a-good.png")
    Image.fromarray(draw(80, 90, kind=np.uint16)).save(folder / "b-sixteen-bit.png")
    Image.frombytes("CMYK", (90, 80), draw(80, 90, 4).tobytes()).save(folder / "c-cmyk.jpg")
    (folder / "d-empty.png").write_bytes(b"")
    (folder / "e-text.jpg").write_text("patient notes")
    (folder / "f-cut.png").write_bytes((folder / "a-good.png").read_bytes()[:200])
    Image.new("1", (20_000, 20_000)).save(folder / "g-huge.png")
    Image.new("1", (20_000, 10)).save(folder / "h-long.png")
    Image.fromarray(draw(64, 64, 3)).save(folder / "i-last.tif")
    return folder


def test_unreadable_images_are_named_with_the_reason_and_the_others_predicted(
    mixed: Path, model: CalibratedModel, bundle: Bundle
) -> None:
    rows = predict_images(model, bundle.description, find_images([mixed, mixed / "missing.png"]), batch_size=2)
    status = {Path(row.image).name: row.status for row in rows}
    good = ["a-good.png", "b-sixteen-bit.png", "c-cmyk.jpg", "i-last.tif"]
    assert [name for name, said in status.items() if said == PREDICTED] == good
    assert status["d-empty.png"] == "is an empty file"
    assert "is not an image" in status["e-text.jpg"]
    assert "cannot be decoded" in status["f-cut.png"]
    assert "limit" in status["g-huge.png"]
    assert "20000 by 10 pixels" in status["h-long.png"]
    assert status["missing.png"] == "is missing"
    for row in rows:
        assert (len(row.probabilities) == len(bundle.description.classes)) == (row.status == PREDICTED)
        if row.probabilities:
            assert sum(row.probabilities) == pytest.approx(1.0, abs=1e-5)
            assert row.predicted == (bundle.description.classes[int(np.argmax(row.probabilities))],)


def test_predictions_do_not_depend_on_the_batch_size(mixed: Path, model: CalibratedModel, bundle: Bundle) -> None:
    images = find_images([mixed])
    one, many = (predict_images(model, bundle.description, images, batch_size=size) for size in (1, 32))
    for left, right in zip(one, many, strict=True):
        assert (left.image, left.status) == (right.image, right.status)
        np.testing.assert_allclose(left.probabilities, right.probabilities, atol=2e-6)


def test_every_image_is_counted_once(mixed: Path, model: CalibratedModel, bundle: Bundle) -> None:
    counted = []
    images = find_images([mixed])
    predict_images(model, bundle.description, images, on_image=lambda: counted.append(1))
    assert len(counted) == len(images) == 9


def test_the_csv_has_one_row_per_image_and_empty_cells_for_the_refused(
    mixed: Path, model: CalibratedModel, bundle: Bundle, tmp_path: Path
) -> None:
    rows = predict_images(model, bundle.description, find_images([mixed]))
    write_predictions(tmp_path / "out.csv", rows, bundle.description.classes)
    with (tmp_path / "out.csv").open() as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["image", "status", "predicted", *(f"p[{name}]" for name in bundle.description.classes)]
    assert [row["image"] for row in read] == [row.image for row in rows]
    for row, prediction in zip(read, rows, strict=True):
        cells = [row[key] for key in row if key.startswith("p[")]
        assert [float(cell) for cell in cells if cell] == list(prediction.probabilities)
        assert (row["predicted"] == "") == (not prediction.probabilities)


def test_a_model_that_overflows_predicts_nothing(mixed: Path, model: CalibratedModel, bundle: Bundle) -> None:
    before = model.scale.clone()
    try:
        model.scale.fill_(torch.inf)
        (row,) = predict_images(model, bundle.description, find_images([mixed / "a-good.png"]))
    finally:
        model.scale.copy_(before)
    assert row.status == "gave no finite probabilities"
    assert not row.probabilities


def test_folders_are_searched_in_order_and_each_file_is_taken_once(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "a.dcm", "notes.txt", ".hidden.png", ".cache/x.png", "c/deep/3.tiff"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = find_images([tmp_path / "b" / "2.PNG", tmp_path, tmp_path / "notes.txt"])
    names = [image.path.relative_to(tmp_path).as_posix() for image in found]
    assert names == ["b/2.PNG", "a.dcm", "b/1.jpg", "c/deep/3.tiff", "notes.txt"]
    assert all(image.reason is None for image in found)


def test_a_folder_without_images_is_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (image,) = find_images([tmp_path / "empty"])
    assert "contains no file with the suffix of an image" in str(image.reason)


def test_a_file_name_that_is_not_utf8_can_be_written(tmp_path: Path, model: CalibratedModel, bundle: Bundle) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    Image.fromarray(draw(64, 64, 3)).save(odd)
    rows = predict_images(model, bundle.description, find_images([tmp_path]))
    assert rows[0].status == PREDICTED
    write_predictions(tmp_path / "out.csv", rows, bundle.description.classes)
    assert "caf\\xe9.png" in (tmp_path / "out.csv").read_text()


def test_a_folder_is_refused_as_an_image(tmp_path: Path) -> None:
    from ept_fed.data.decoding.image_file import UnreadableImageError

    with pytest.raises(UnreadableImageError, match="is not a file"):
        read_image("folder", tmp_path)
