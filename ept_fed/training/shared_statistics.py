"""A LDA head's statistics as tensors that travel: the sites' weighted mean of them is that of all their images.

Features and their products are divided by the square root of D on the way, so that those of layer-normed features lie
well within what secure aggregation can add, and well above its steps.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ept_fed.catalog.methods import STATISTICS_TENSORS, Statistics
from ept_fed.protocol.layout import PayloadMismatchError, Vector
from ept_fed.training.lda import Array, ClassStatistics

__all__ = ["pack_statistics", "shape_statistics", "unpack_statistics"]

_SHARES, _SUMS, _MEAN, _MOMENTS = STATISTICS_TENSORS
# Of float32, with room for a mean of many.
_RESOLUTION = 1e-6
_FARTHEST = 1e-4
_NEGATIVE = 1e-3


def shape_statistics(kind: Statistics, *, classes: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes: shares (C,), sums (C, D), mean (D,), and of "moments" the upper half, D (D + 1) / 2."""
    shapes: dict[str, tuple[int, ...]] = {_SHARES: (classes,), _SUMS: (classes, width), _MEAN: (width,)}
    return shapes if kind == "means" else {**shapes, _MOMENTS: (width * (width + 1) // 2,)}


def pack_statistics(statistics: ClassStatistics | None, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Vector]:
    """Return statistics as tensors of these names and shapes; None, before any were measured, is all 0."""
    if statistics is None:
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    width = len(statistics.mean)
    packed = {
        _SHARES: statistics.shares,
        _SUMS: statistics.sums / np.sqrt(width),
        _MEAN: statistics.mean / np.sqrt(width),
    }
    if _MOMENTS in shapes:
        if statistics.moments is None:
            raise ValueError("these statistics have no moments")
        packed[_MOMENTS] = statistics.moments[np.triu_indices(width)] / np.sqrt(width)
    return {name: packed[name].astype(np.float32) for name in shapes}


def unpack_statistics(tensors: Mapping[str, npt.NDArray[np.floating]]) -> ClassStatistics | None:
    """Return what came of `pack_statistics`, or of a mean of several; None if nothing was measured yet.

    Raises:
        PayloadMismatchError: if no images could have such statistics.
    """
    shares, sums, mean = (tensors[name].astype(np.float64) for name in (_SHARES, _SUMS, _MEAN))
    if not ((shares >= 0) & (shares <= 1 + _FARTHEST)).all():
        raise PayloadMismatchError(f"'{_SHARES}' holds a share of images that is not between 0 and 1")
    if not any(tensor.any() for tensor in tensors.values()):
        return None
    if not shares.any() or sums[shares == 0].any():
        raise PayloadMismatchError(f"'{_SUMS}' holds features of a class that '{_SHARES}' says has no images")
    width, moments = len(mean), None
    if _MOMENTS in tensors:
        moments = _unfold(tensors[_MOMENTS].astype(np.float64) * np.sqrt(width), width)
        # Of features, mean squares are not negative in any direction.
        smallest, largest = np.linalg.eigvalsh(moments)[[0, -1]]
        if smallest < -_NEGATIVE * largest or largest <= 0:
            raise PayloadMismatchError(f"'{_MOMENTS}' holds a negative mean square")
    scale = np.sqrt(width)
    return ClassStatistics(shares, sums * scale, mean * scale, moments, _RESOLUTION)


def _unfold(upper: Array, width: int) -> Array:
    moments = np.zeros((width, width))
    moments[np.triu_indices(width)] = upper
    return moments + np.triu(moments, 1).T
