"""The data doctor finds each planted fault and nothing else."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from ept_fed.config.data import ManifestColumns, ManifestSettings, PhantomSettings
from ept_fed.config.partition import FeatureShiftSettings, IIDPartition
from ept_fed.data.doctor import examine_data
from ept_fed.errors import InputRefusedError
from ept_fed.validation.load_experiment import load_experiment
from tests.needs import REAL_DATA, SHARED

ROOT = Path(__file__).resolve().parents[3]
Write = Callable[..., ManifestSettings]


def edit(settings: ManifestSettings, change: Callable[[list[dict[str, str]]], object]) -> None:
    path = settings.root / "manifest.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_split(write_hospital: Write) -> ManifestSettings:
    """Write the hospital with patients 40 to 47 in the test split and all others in the training split."""
    settings = write_hospital(columns=ManifestColumns(group="patient", split="set"), validation_fraction=0.0)
    edit(settings, lambda rows: [row.update(set="test" if "p4" in row["image"] else "train") for row in rows])
    return settings


def copy(settings: ManifestSettings, image: str, onto: str) -> None:
    (settings.root / "images" / onto).write_bytes((settings.root / "images" / image).read_bytes())


def test_sound_data_are_clean_and_counted(write_hospital: Write) -> None:
    found = examine_data(write_hospital(), seed=0)
    assert found.clean
    assert (found.images, found.groups, found.unreadable, found.duplicates) == (96, 48, (), ())
    assert sum(int(row["images"]) for row in found.by_class) == 96
    assert found.sizes == (((30, 20), 96),)
    assert found.modes == (("PNG RGB", 96),)
    assert found.to_json()["status"] == "clean"


def test_broken_and_absent_files_are_found(write_hospital: Write) -> None:
    settings = write_hospital()
    images = settings.root / "images"
    (images / "p00-0.png").write_bytes(b"not an image")
    (images / "p01-0.png").write_bytes((images / "p01-0.png").read_bytes()[:200])
    (images / "p02-0.png").unlink()
    found = examine_data(settings, seed=0)
    assert not found.clean
    reasons = {bad.image: bad.reason for bad in found.unreadable}
    assert set(reasons) == {"p00-0.png", "p01-0.png", "p02-0.png"}
    assert reasons["p02-0.png"] == "is missing"
    assert found.images == 96


@pytest.mark.parametrize(
    ("twin", "onto", "kind"),
    [
        ("p00-0.png", "p00-1.png", "nothing"),
        ("p00-0.png", "p04-0.png", "groups"),
        ("p00-0.png", "p02-0.png", "sites"),
    ],
)
def test_equal_images_are_found_within_and_across(write_hospital: Write, twin: str, onto: str, kind: str) -> None:
    settings = write_split(write_hospital)
    copy(settings, twin, onto)
    (same,) = examine_data(settings, seed=0).duplicates
    assert same.images == (twin, onto)
    assert same.kind == kind


def test_equal_images_across_splits_with_different_labels_are_found(write_hospital: Write) -> None:
    settings = write_split(write_hospital)
    copy(settings, "p00-0.png", "p41-1.png")
    found = examine_data(settings, seed=0)
    (same,) = found.duplicates
    assert same.kind == "splits"
    assert same.splits == ("test", "train")
    assert same.labels == (("a",), ("b",))
    assert found.to_json()["duplicates"][0]["across"] == "splits"


def test_one_picture_in_two_formats_is_a_duplicate(write_hospital: Write) -> None:
    from PIL import Image

    settings = write_hospital()
    with Image.open(settings.root / "images" / "p00-0.png") as picture:
        picture.save(settings.root / "images" / "p00-1.png", "BMP")
    found = examine_data(settings, seed=0)
    assert [same.images for same in found.duplicates] == [("p00-0.png", "p00-1.png")]
    assert dict(found.modes) == {"PNG RGB": 95, "BMP RGB": 1}


def test_groups_that_straddle_a_split_are_found_before_partitioning(write_hospital: Write) -> None:
    settings = write_split(write_hospital)
    edit(settings, lambda rows: rows[0].update(set="test"))
    found = examine_data(settings, seed=0)
    assert not found.clean
    ((group, images, across),) = [(s.group, s.images, s.across) for s in found.straddling_splits]
    assert (group, images, across) == ("x/patient-0", 2, ("test", "train"))


def test_groups_at_two_sites_are_reported_but_are_not_a_fault(write_hospital: Write) -> None:
    settings = write_hospital(columns=ManifestColumns(group="patient", group_scope="everywhere"))
    edit(settings, lambda rows: rows[0].update(site="y"))
    found = examine_data(settings, seed=0)
    assert [(s.group, s.across) for s in found.straddling_sites] == [("patient-0", ("x", "y"))]
    assert found.clean


def test_a_site_that_a_run_would_refuse_is_named(write_hospital: Write) -> None:
    settings = write_hospital(columns=ManifestColumns(group="patient", split="set"))
    edit(settings, lambda rows: [row.update(set="test" if row["site"] == "x" else "train") for row in rows])
    found = examine_data(settings, seed=0)
    assert not found.clean
    assert {line.split()[0] for line in found.refusals} == {"x", "y"}


def test_virtual_sites_are_examined_as_a_run_would_partition_them() -> None:
    settings = PhantomSettings(phantom_sites=2, patients_per_class=6, partition=IIDPartition(sites=3))
    found = examine_data(settings, seed=0)
    assert {row["site"] for row in found.by_split} == {"site-1", "site-2", "site-3"}
    shifted = settings.model_copy(update={"partition": IIDPartition(sites=3, feature_shift=FeatureShiftSettings())})
    assert examine_data(shifted, seed=0) == found


def test_a_source_that_cannot_be_listed_is_refused(write_hospital: Write) -> None:
    with pytest.raises(InputRefusedError):
        examine_data(write_hospital(images=Path("nowhere")), seed=0)


@pytest.mark.shared
@pytest.mark.integration
@REAL_DATA.mark
def test_ham10000_matches_its_readme() -> None:
    weights = "model.weights=null"
    experiment = load_experiment(ROOT / "configs" / "ham10000.yaml", [f"data.root={SHARED / 'data'}", weights])
    found = examine_data(experiment.data, experiment.seed)
    sites: dict[str, int] = {}
    for row in found.by_split:
        sites[str(row["site"])] = sites.get(str(row["site"]), 0) + int(row["images"])
    assert sites == {"vidir_molemax": 3954, "vidir_modern": 3363, "rosendahl": 2259, "vienna_dias": 439}
    assert (found.images, found.groups, len(found.straddling_sites)) == (10015, 7470, 9)
    assert found.sizes == (((200, 150), 10015),)
    assert found.unreadable == ()
    akiec = {row["site"] for row in found.by_class if row["class"] == "akiec" and row["images"]}
    assert akiec == {"rosendahl", "vidir_modern"}
    # Two lesions of vienna_dias appear twice under different names, at least at this image size.
    assert [same.kind for same in found.duplicates] == ["nothing", "nothing"]
