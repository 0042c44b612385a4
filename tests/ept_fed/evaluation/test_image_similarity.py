"""PSNR and SSIM against torchmetrics' implementation, and at their limits."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ept_fed.evaluation.image_similarity import psnr, ssim


@pytest.mark.parametrize("seed", range(3))
def test_psnr_and_ssim_agree_with_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one = rng.random((3, 40, 28))
    other = np.clip(one + rng.normal(0, 0.2, one.shape), 0, 1)
    tensors = [torch.from_numpy(image)[None] for image in (one, other)]
    assert psnr(one, other) == pytest.approx(peak_signal_noise_ratio(*tensors, data_range=1.0).item(), abs=1e-6)
    # torchmetrics also averages over windows in its mirrored border. By definition all windows are within the image.
    _, windows = structural_similarity_index_measure(*tensors, data_range=1.0, return_full_image=True)
    assert ssim(one, other) == pytest.approx(windows[..., 5:-5, 5:-5].mean().item(), abs=1e-6)


def test_an_image_has_the_best_similarity_to_itself() -> None:
    image = np.random.default_rng(0).random((3, 16, 16))
    assert math.isinf(psnr(image, image))
    assert ssim(image, image) == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(3, 10, 40), (16, 16)])
def test_an_image_smaller_than_the_window_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 11"):
        ssim(np.zeros(shape), np.zeros(shape))
