"""DICOM folders as a PACS exports them: files of several patients, and the CSV that labels them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ept_fed.config.data import DicomSettings
from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.data.datasets.prepare import prepare_data
from ept_fed.data.decoding.dicom_file import apply_window
from ept_fed.data.sources.dicom_folder import hash_patient, read_dicom_folder
from ept_fed.errors import InputRefusedError, Problem
from tests.needs import PYDICOM

pytestmark = PYDICOM.mark
PRIVATE = "1.3.46.670589.33.1.4.1"


@pytest.fixture
def export(tmp_path: Path, encode_dicom: Callable[..., bytes]) -> Callable[..., Path]:
    """Return a function that writes one file per call and returns its path below the folder.

    UIDs count up; each patient has two images.
    """
    written: list[Path] = []

    def write(name: str | None = None, pixels: np.ndarray | None = None, **attributes: Any) -> Path:
        number = len(written)
        path = tmp_path / "images" / (name or f"study-{number // 2}/IM{number:04d}")
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 4096, (8, 6)).astype(np.uint16) if pixels is None else pixels
        known = {"SOPInstanceUID": f"1.2.826.{number}", "PatientID": f"PAT-{number // 2}"}
        path.write_bytes(encode_dicom(values, **(known | attributes)))
        written.append(path)
        return path.relative_to(tmp_path / "images")

    return write


def label(root: Path, rows: list[str], header: str = "SOPInstanceUID,label") -> DicomSettings:
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return DicomSettings(root=root)


def refuse(settings: DicomSettings) -> tuple[Problem, ...]:
    with pytest.raises(InputRefusedError) as refusal:
        read_dicom_folder(settings)
    return refusal.value.problems


def test_files_are_labelled_by_their_uid(export: Callable[..., Path], tmp_path: Path) -> None:
    paths = [export().as_posix() for _ in range(4)]
    catalog = read_dicom_folder(label(tmp_path, [f"1.2.826.{n},{'ab'[n % 2]}" for n in range(4)]))
    assert [(record.image, record.labels) for record in catalog.records] == [
        (path, (n % 2,)) for n, path in enumerate(paths)
    ]
    assert catalog.records[0].group == catalog.records[1].group != catalog.records[2].group


def test_files_are_labelled_by_their_path_with_site_and_split(export: Callable[..., Path], tmp_path: Path) -> None:
    paths = [export().as_posix() for _ in range(2)]
    rows = [f"{paths[0]},a,north,train", f"{paths[1]},b,south,test"]
    columns = {"image": "path", "image_is": "path", "site": "hospital", "split": "set"}
    settings = label(tmp_path, rows, "path,label,hospital,set")
    catalog = read_dicom_folder(DicomSettings.model_validate({"root": tmp_path, "columns": columns}))
    assert [(record.site, record.split) for record in catalog.records] == [("north", "train"), ("south", "test")]
    assert len({record.group for record in catalog.records}) == 2, "equal numbers at two hospitals are two patients"
    assert settings.columns.image_is == "uid"


def test_a_patient_id_never_appears_in_plaintext(export: Callable[..., Path], tmp_path: Path) -> None:
    for _ in range(2):
        export(PatientID="Secret-0815")
    settings = label(tmp_path, ["1.2.826.0,a", "1.2.826.1,b"])
    (tmp_path / "site.key").write_bytes(b"k" * 32)
    keyed = settings.model_copy(update={"patient_key": Path("site.key")})
    plain, secret = (read_dicom_folder(chosen).records for chosen in (settings, keyed))
    assert "0815" not in repr((plain, secret))
    assert plain[0].group == hash_patient("Secret-0815", b"ept-fed")
    assert secret[0].group == hash_patient("Secret-0815", b"k" * 32) != plain[0].group
    (tmp_path / "site.key").write_bytes(b"short")
    assert "shorter than 16 bytes" in str(refuse(keyed)[0])


def test_pixels_are_rescaled_and_windowed(export: Callable[..., Path], tmp_path: Path) -> None:
    values = np.arange(48, dtype=np.uint16).reshape(6, 8) * 10
    window = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 300, "WindowWidth": 200}
    for kind in ("MONOCHROME2", "MONOCHROME1"):
        export(pixels=values, PhotometricInterpretation=kind, **window)
    export(pixels=np.dstack([values.astype(np.uint8)] * 3))
    catalog = read_dicom_folder(label(tmp_path, [f"1.2.826.{n},{'ab'[n % 2]}" for n in range(3)]))
    upright, inverted, colour = (catalog.store.read(record.image)[:, :, 0] for record in catalog.records)
    np.testing.assert_array_equal(upright, np.round(255 * apply_window(values * 2.0 - 100.0, 300, 200)))
    assert abs(upright.astype(int) + inverted - 255).max() <= 1
    np.testing.assert_array_equal(colour, values.astype(np.uint8))
    modes = [catalog.store.mode(record.image) for record in catalog.records]
    assert modes == ["DICOM MONOCHROME2", "DICOM MONOCHROME1", "DICOM RGB"]


def test_all_mismatches_are_reported_together(export: Callable[..., Path], tmp_path: Path) -> None:
    for _ in range(3):
        export()
    export("twin.dcm", SOPInstanceUID="1.2.826.0")
    export("nobody.dcm", PatientID=None)
    export("empty.dcm", PixelData=None)
    export("private.dcm", syntax=PRIVATE)
    export("film.dcm", NumberOfFrames=30)
    export("colourless.dcm", PhotometricInterpretation=None)
    (tmp_path / "images" / "broken.dcm").write_bytes(b"no mark")
    rows = ["1.2.826.0,a", "1.2.826.1,", "1.2.826.77,b", "1.2.826.77,a", *(f"1.2.826.{n},b" for n in range(4, 9))]
    problems = refuse(label(tmp_path, rows))
    said = "\n".join(str(problem) for problem in problems)
    for expected in (
        "2 row(s) have no file",
        "files have the same SOPInstanceUID",
        "listed more than once",
        "have no row in the CSV",
        "have no PatientID",
        "column 'label' is empty",
        "['empty.dcm']: 1 file(s) cannot be used: each is a DICOM file without pixel data",
        f"['private.dcm']: 1 file(s) cannot be used: each has the private transfer syntax {PRIVATE}",
        "['film.dcm']: 1 file(s) cannot be used: each holds 30 frames",
        "['colourless.dcm']: 1 file(s) cannot be used: each is a DICOM file that cannot be decoded (AttributeError)",
        "['broken.dcm']: 1 file(s) cannot be used: each is a DICOM file that cannot be decoded",
    ):
        assert expected in said, said
    assert "PAT-" not in said


def test_one_file_without_usable_pixels_stops_a_run_or_is_dropped(export: Callable[..., Path], tmp_path: Path) -> None:
    for number in range(40):
        wrong = {3: {"PixelData": None}, 4: {"syntax": PRIVATE}, 8: {"NumberOfFrames": 9}}.get(number, {})
        export(**wrong)
    settings = label(tmp_path, [f"1.2.826.{n},{'ab'[n // 2 % 2]}" for n in range(40)])
    settings = settings.model_copy(update={"validation_shots": None})
    spec = InputSpec(8, (0.5,) * 3, (0.5,) * 3, "bilinear")
    with pytest.raises(InputRefusedError) as refusal:
        prepare_data(settings, spec, seed=0)
    for reason in ("without pixel data", "private transfer syntax", "holds 9 frames"):
        assert reason in str(refusal.value)
    data = prepare_data(settings.model_copy(update={"max_unreadable": 0.1}), spec, seed=0)
    assert "3 image(s) dropped" in "".join(data.notes)


def test_a_file_without_an_image_needs_no_row(export: Callable[..., Path], tmp_path: Path) -> None:
    for _ in range(2):
        export()
    export("report.dcm", PixelData=None, PatientID=None)
    assert len(read_dicom_folder(label(tmp_path, ["1.2.826.0,a", "1.2.826.1,b"])).records) == 2


def test_images_without_a_patient_may_each_form_a_group(export: Callable[..., Path], tmp_path: Path) -> None:
    for _ in range(2):
        export(PatientID=None)
    settings = label(tmp_path, ["1.2.826.0,a", "1.2.826.1,b"])
    assert "PatientID" in refuse(settings)[0].fix
    alone = read_dicom_folder(settings.model_copy(update={"group": "image"}))
    assert len({record.group for record in alone.records}) == 2


def test_a_column_of_paths_taken_for_uids_gets_a_hint(export: Callable[..., Path], tmp_path: Path) -> None:
    paths = [export().as_posix() for _ in range(2)]
    problems = refuse(label(tmp_path, [f"{path},{'ab'[n]}" for n, path in enumerate(paths)]))
    assert "nothing matches" in problems[0].fix


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").write_text("no image")
    assert "holds no DICOM file" in refuse(label(tmp_path, ["1,a", "2,b"]))[0].fix
