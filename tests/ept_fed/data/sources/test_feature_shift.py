"""Feature shift: seeded by site and image, equal at every read, and as strong as its settings state."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ept_fed.config.data import ManifestSettings
from ept_fed.config.partition import DirichletPartition, FeatureShiftSettings, SitesPartition
from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.data.datasets.prepare import prepare_data
from ept_fed.data.decoding.image_store import ArrayImages
from ept_fed.data.records.records import ImageRecord
from ept_fed.data.sources.feature_shift import ShiftedImages, build_scanner, draw_profile, shift_features
from ept_fed.data.sources.simulated_scanner import AcquisitionProfile

PLAIN = AcquisitionProfile(gain=1.0, gamma=1.0, blur=0.0, noise=0.0, field_of_view=1.0)
SETTINGS = FeatureShiftSettings()
SPEC = InputSpec(16, (0.5,) * 3, (0.5,) * 3, "bilinear")


def scan(profile: AcquisitionProfile, image: np.ndarray) -> np.ndarray:
    """Pass an image (H, W) with values in 0–1 through a scanner, without noise."""
    pixels = torch.from_numpy(np.repeat(image[None].astype(np.float32), 3, axis=0))
    return build_scanner(profile)({"image": pixels, "noise": torch.zeros_like(pixels)})["image"][0].numpy()


def vary(**changes: float) -> AcquisitionProfile:
    from dataclasses import replace

    return replace(PLAIN, **changes)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 0.9, (24, 32))


def test_a_plain_scanner_changes_nothing(image: np.ndarray) -> None:
    np.testing.assert_allclose(scan(PLAIN, image), image, atol=1e-5)


def test_gain_and_gamma_follow_the_formula(image: np.ndarray) -> None:
    np.testing.assert_allclose(scan(vary(gain=0.8, gamma=1.3), image), 0.8 * image**1.3, atol=1e-5)


def test_blur_is_a_gaussian_whose_width_is_a_fraction_of_the_image() -> None:
    point = np.zeros((41, 40))
    point[20, 20] = 1.0
    seen = scan(vary(blur=0.05), point)
    offsets = np.arange(40) - 20
    assert abs(seen.sum() - 1.0) < 1e-3
    assert abs(np.sqrt((seen.sum(axis=0) * offsets**2).sum()) - 2.0) < 0.05


def test_a_wider_field_of_view_shows_objects_smaller() -> None:
    disc = (np.hypot(*np.mgrid[-20:20, -20:20]) < 10).astype(float)
    areas = [scan(vary(field_of_view=view), disc).sum() for view in (0.8, 1.0, 1.25)]
    np.testing.assert_allclose(areas, disc.sum() / np.array([0.8, 1.0, 1.25]) ** 2, rtol=0.05)


def test_profiles_derive_from_seed_and_site_and_stay_in_range() -> None:
    assert draw_profile(SETTINGS, 0, "a") == draw_profile(SETTINGS, 0, "a")
    assert draw_profile(SETTINGS, 0, "a") != draw_profile(SETTINGS, 0, "b") != draw_profile(SETTINGS, 1, "b")
    for site in range(50):
        profile = draw_profile(SETTINGS, 0, str(site))
        for name in ("gain", "gamma", "blur", "noise", "field_of_view"):
            low, high = getattr(SETTINGS, name)
            assert low <= getattr(profile, name) <= high


def shifted(seed: int = 0, **settings: tuple[float, float]) -> ShiftedImages:
    arrays = {"train": np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), dtype=np.uint8)}
    records = [ImageRecord(f"train/{n}", (0,), "xy"[n % 2], str(n), None) for n in range(4)]
    return shift_features(ArrayImages(arrays), records, FeatureShiftSettings.model_validate(settings), seed)


def test_reading_repeats_exactly_and_uses_no_global_generator() -> None:
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = shifted().read("train/0")
    assert (first == shifted().read("train/0")).all()
    assert (first != shifted(seed=1).read("train/0")).any()
    assert (first.dtype, first.shape) == (np.uint8, (20, 20, 3))
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_noise_has_its_std_and_differs_between_images() -> None:
    flat = {"gain": (1, 1), "gamma": (1, 1), "blur": (0, 0), "field_of_view": (1, 1), "noise": (0.05, 0.05)}
    arrays = {"train": np.full((2, 64, 64, 3), 128, np.uint8)}
    records = [ImageRecord(f"train/{n}", (0,), "x", str(n), None) for n in range(2)]
    store = shift_features(ArrayImages(arrays), records, FeatureShiftSettings.model_validate(flat), 0)
    first, second = (store.read(f"train/{n}").astype(float) / 255 for n in range(2))
    assert abs(first.std() - 0.05) < 0.002
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_feature_shift_works_with_any_partition_and_reaches_the_cache(
    write_hospital: Callable[..., ManifestSettings],
) -> None:
    settings = write_hospital(validation_shots=None)
    label_skew = DirichletPartition(sites=2, alpha=5.0, feature_shift=SETTINGS)
    for partition in (SitesPartition(feature_shift=SETTINGS), label_skew):
        moved = settings.model_copy(update={"partition": partition})
        plain = settings.model_copy(update={"partition": partition.model_copy(update={"feature_shift": None})})
        data, again, unmoved = (prepare_data(chosen, SPEC, seed=0) for chosen in (moved, moved, plain))
        for site in data.sites:
            images = [next(prepared.sites[site].test.batches(2))[0] for prepared in (data, again, unmoved)]
            assert data.sites[site].test.records == unmoved.sites[site].test.records
            assert torch.equal(images[0], images[1])
            assert not torch.equal(images[0], images[2])
