"""Measures of the similarity of two images: PSNR, and SSIM as its authors define it."""

import numpy as np
from scipy.ndimage import gaussian_filter

from ept_fed.evaluation.metrics import Array

__all__ = ["psnr", "ssim"]

# Wang, Bovik, Sheikh and Simoncelli 2004: a Gaussian window of 11 pixels, standard deviation 1.5, K1 and K2.
_RADIUS, _SIGMA, _K1, _K2 = 5, 1.5, 0.01, 0.03


def psnr(one: Array, other: Array) -> float:
    """Return the peak signal-to-noise ratio in dB of two images with values in [0, 1]; infinite if they are equal."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else -10.0 * float(np.log10(error))


def ssim(one: Array, other: Array) -> float:
    """Return the structural similarity, averaged over channels and over all windows inside the image.

    Args:
        one, other: (channels, H, W) in [0, 1], H and W at least 11.

    Raises:
        ValueError: for other shapes.
    """
    if one.shape != other.shape or one.ndim != 3 or min(one.shape[1:]) <= 2 * _RADIUS:
        raise ValueError(f"SSIM needs two images (channels, H, W) of at least 11×11, not {one.shape} and {other.shape}")
    x, y = one.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y = _smooth(x), _smooth(y)
    var_x, var_y = _smooth(x * x) - mean_x**2, _smooth(y * y) - mean_y**2
    covariance = _smooth(x * y) - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float(np.mean((luminance * structure)[:, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS]))


def _smooth(image: Array) -> Array:
    return np.asarray(gaussian_filter(image, _SIGMA, radius=_RADIUS, axes=(1, 2)))
