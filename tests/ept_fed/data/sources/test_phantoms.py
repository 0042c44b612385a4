import numpy as np
import pytest
from scipy.ndimage import gaussian_laplace
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ept_fed.config.data import PhantomSettings
from ept_fed.data.decoding.image_store import UnreadableImageError
from ept_fed.data.sources.phantom_structures import STRUCTURES
from ept_fed.data.sources.phantoms import derive_profile, generate_phantoms
from ept_fed.errors import InputRefusedError

SMALL = PhantomSettings(phantom_sites=2, patients_per_class=3, images_per_patient=2)


def test_catalog_has_every_site_class_patient_and_view() -> None:
    catalog = generate_phantoms(SMALL, seed=0)
    assert len(catalog.records) == len({record.image for record in catalog.records}) == 2 * 5 * 3 * 2
    assert {record.site for record in catalog.records} == {"site-1", "site-2"}
    assert len({record.group for record in catalog.records}) == 2 * 5 * 3


def test_images_depend_on_seed_and_key_only() -> None:
    key = "site-2/rings/001/1"
    few, many = generate_phantoms(SMALL, seed=0), generate_phantoms(PhantomSettings(), seed=0)
    for _ in range(2):
        assert np.array_equal(few.store.read(key), many.store.read(key))
    assert not np.array_equal(few.store.read(key), generate_phantoms(SMALL, seed=1).store.read(key))


def test_views_of_a_patient_differ_less_than_patients() -> None:
    store = generate_phantoms(PhantomSettings(), seed=0).store
    views, patients = [], []
    for number in range(20):
        first, second = (store.read(f"site-1/nodules/{number:03d}/{view}").mean((0, 1)) for view in range(2))
        other = store.read(f"site-1/nodules/{number + 20:03d}/0").mean((0, 1))
        views.append(np.abs(first - second).mean())
        patients.append(np.abs(first - other).mean())
    assert np.median(views) < 0.5 * np.median(patients)


@pytest.mark.parametrize("size", [64, 96])
def test_every_structure_draws_at_every_size(size: int) -> None:
    catalog = generate_phantoms(SMALL.model_copy(update={"size": size}), seed=0)
    for kind in STRUCTURES:
        image = catalog.store.read(f"site-1/{kind}/000/0")
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert image.std() > 3


def test_each_site_has_its_own_scanner() -> None:
    assert derive_profile(0, "site-1") == derive_profile(0, "site-1")
    assert derive_profile(0, "site-1") != derive_profile(0, "site-2")
    assert derive_profile(0, "site-1") != derive_profile(1, "site-1")


def test_classes_differ_in_structure_and_not_in_intensity() -> None:
    catalog = generate_phantoms(PhantomSettings(phantom_sites=2, patients_per_class=20), seed=0)
    images = [catalog.store.read(record.image) for record in catalog.records]
    labels = [record.labels[0] for record in catalog.records]
    groups = [record.group for record in catalog.records]

    def describe_intensity(image: np.ndarray) -> np.ndarray:
        counts = [np.histogram(image[:, :, channel], 16, (0, 256))[0] for channel in range(3)]
        return np.concatenate([*counts, image.mean((0, 1)), image.std((0, 1))])

    def describe_structure(image: np.ndarray) -> np.ndarray:
        gray = image.mean(2)
        gray = (gray - gray.mean()) / gray.std()
        blobs = [np.abs(gaussian_laplace(gray, scale)) * scale**2 for scale in (1, 1.5, 2, 3, 4)]
        return np.concatenate([[blob.mean(), blob.std(), *np.percentile(blob, (50, 90, 99))] for blob in blobs])

    def score(features: list[np.ndarray]) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        return float(cross_val_score(model, features, labels, groups=groups, cv=GroupKFold(4)).mean())

    intensity, structure = score(list(map(describe_intensity, images))), score(list(map(describe_structure, images)))
    assert intensity < 0.35
    assert structure > 0.6


def test_chosen_classes_are_generated_in_order() -> None:
    catalog = generate_phantoms(SMALL.model_copy(update={"classes": ("vessels", "rings")}), seed=0)
    assert catalog.classes == ("vessels", "rings")
    assert {record.image.split("/")[1] for record in catalog.records if record.labels == (0,)} == {"vessels"}


def test_unsuitable_settings_are_refused_together() -> None:
    wrong = SMALL.model_copy(update={"classes": ("stars",), "task": "multi_label"})
    with pytest.raises(InputRefusedError) as caught:
        generate_phantoms(wrong, seed=0)
    assert [problem.field for problem in caught.value.problems] == ["data.classes", "data.task"]


def test_unknown_keys_are_missing() -> None:
    store = generate_phantoms(SMALL, seed=0).store
    assert store.find_missing(["site-9/rings/000/0", "site-1/rings/000/0"]) == ["site-9/rings/000/0"]
    with pytest.raises(UnreadableImageError):
        store.read("site-9/rings/000/0")
