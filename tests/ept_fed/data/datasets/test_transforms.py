import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from ept_fed.config.data import AugmentationSettings
from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.data.datasets.transforms import (
    RandomHorizontalFlipd,
    RandomResizedCropd,
    build_evaluation_transforms,
    build_training_transforms,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
SPEC = InputSpec(32, MEAN, STD, "bicubic")
PHOTO = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((200, 150))
)


def _seeded(seed: int) -> np.random.RandomState:
    return np.random.RandomState(seed)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_matches_pillow_to_rounding(interpolation: str) -> None:
    spec = InputSpec(32, MEAN, STD, interpolation)
    out = build_evaluation_transforms(spec)({"image": PHOTO.copy()})["image"]
    method = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    resized = np.asarray(Image.fromarray(PHOTO).resize((32, 32), method)) / 255.0
    expected = torch.from_numpy((resized - MEAN) / STD).permute(2, 0, 1).float()
    assert out.dtype == torch.float32
    assert type(out) is torch.Tensor
    assert (out - expected).abs().max() < 1.5 / 255 / min(STD)


def test_uniform_image_is_normalised_exactly() -> None:
    out = build_evaluation_transforms(SPEC)({"image": np.full((40, 50, 3), 51, np.uint8)})["image"]
    expected = (0.2 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.allclose(out.mean((1, 2)), expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "kept"), [(150, 200, (64, 85)), (64, 300, (64, 300)), (20, 30, (20, 30))])
def test_only_large_images_are_shrunk_before_caching(height: int, width: int, kept: tuple[int, int]) -> None:
    deterministic, _ = build_training_transforms(SPEC, AugmentationSettings())
    out = deterministic({"image": np.zeros((height, width, 3), np.uint8)})["image"]
    assert (out.dtype, tuple(out.shape)) == (torch.uint8, (3, *kept))


@pytest.mark.parametrize(("height", "width"), [(300, 300), (150, 400)])
def test_crops_are_distributed_as_those_of_torchvision(height: int, width: int) -> None:
    crop = RandomResizedCropd("image", 32, (0.08, 1.0), "bicubic").set_random_state(state=_seeded(0))
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    ours, theirs = [], []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(3000):
            crop.randomize(image)
            ours.append(crop.box)
            theirs.append(RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]))
    for boxes in (ours, theirs):
        assert all(top >= 0 and left >= 0 and top + h <= height and left + w <= width for top, left, h, w in boxes)
    distances = [ks_2samp(np.array(ours)[:, axis], np.array(theirs)[:, axis]).statistic for axis in range(4)]
    assert max(distances) < 0.05


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(300, 30, (130, 0, 40, 30)), (30, 300, (0, 130, 30, 40)), (50, 50, (0, 0, 50, 50))],
)
def test_crop_that_never_fits_falls_back_to_the_centre(height: int, width: int, box: tuple[int, ...]) -> None:
    crop = RandomResizedCropd("image", 32, (1.5, 1.6), "bicubic").set_random_state(state=_seeded(0))
    crop.randomize(torch.zeros(3, height, width, dtype=torch.uint8))
    assert crop.box == box


def test_half_of_the_images_are_mirrored_without_other_changes() -> None:
    flip = RandomHorizontalFlipd("image").set_random_state(state=_seeded(0))
    image = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    mirrored = 0
    for _ in range(500):
        out = flip({"image": image})["image"]
        mirrored += int(torch.equal(out, image.flip(-1)))
        assert torch.equal(out, image) or torch.equal(out, image.flip(-1))
    assert 200 < mirrored < 300


def test_training_transforms_repeat_for_one_seed_and_use_no_global_generator() -> None:
    deterministic, random = build_training_transforms(SPEC, AugmentationSettings())
    item = deterministic({"image": PHOTO.copy()})
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, second, other = (random.set_random_state(state=_seeded(seed))(item)["image"] for seed in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (3, 32, 32)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())


def test_flip_can_be_switched_off() -> None:
    _, random = build_training_transforms(SPEC, AugmentationSettings(flip=False))
    assert not any(isinstance(transform, RandomHorizontalFlipd) for transform in random.transforms)
