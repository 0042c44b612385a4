"""Images for training and evaluation of the demo backbone: reproducible drawings, and folds without common images."""

import numpy as np
import pytest

from ept_fed.seeds import numpy_generator
from simulations.pretraining.images import ALL_NUMBERS, FAMILIES, draw_image
from simulations.probes.backbone import DEVELOPMENT_PER_CLASS, take_fold


@pytest.mark.parametrize("index", range(12))
def test_a_drawing_and_its_numbers_follow_from_the_seed(index: int) -> None:
    first, second = (draw_image(64, numpy_generator(0, "test", index)) for _ in range(2))
    image, family, numbers, maps = first
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert 0 <= family < len(FAMILIES)
    assert len(numbers) == len(ALL_NUMBERS)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(image, draw_image(64, numpy_generator(1, "test", index))[0])
    assert not np.isinf(maps).any()


def test_the_final_fold_shares_no_image_with_development() -> None:
    labels = np.repeat(np.arange(3), 250)
    development, final = take_fold(labels, "development"), take_fold(labels, "final")
    assert np.array_equal(np.sort(np.concatenate([development, final])), np.arange(750))
    assert np.bincount(labels[development]).tolist() == [DEVELOPMENT_PER_CLASS] * 3
    assert np.array_equal(development, take_fold(labels, "development"))
