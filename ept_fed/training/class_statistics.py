"""The statistics for LDA heads as payload tensors; the weighted mean of the sites' tensors is that of all their images.

Features and their products are divided by the square root of D before they are sent. Values of layer-normed features
are then well within the range of secure aggregation, and well above its step size.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ept_fed.catalog.methods import STATISTICS_TENSORS, Statistics
from ept_fed.protocol.layout import PayloadMismatchError, Vector
from ept_fed.training.lda import Array, ClassStatistics

__all__ = ["pack_statistics", "shape_statistics", "unpack_statistics"]

_SHARES, _SUMS, _MEAN, _MOMENTS = STATISTICS_TENSORS
# Relative rounding error of float32, with a margin for the mean of many sites.
_RESOLUTION = 1e-6
_FARTHEST = 1e-4
_NEGATIVE = 1e-3


def shape_statistics(kind: Statistics, *, classes: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes: shares (C,), sums (C, D), mean (D,), and for "moments" a triangle, D (D + 1) / 2."""
    shapes: dict[str, tuple[int, ...]] = {_SHARES: (classes,), _SUMS: (classes, width), _MEAN: (width,)}
    return shapes if kind == "means" else {**shapes, _MOMENTS: (width * (width + 1) // 2,)}


def pack_statistics(statistics: ClassStatistics | None, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Vector]:
    """Return statistics as tensors of these names and shapes; None (nothing measured yet) becomes all zeros."""
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
    """Return the statistics from tensors of `pack_statistics`, or from a mean of such tensors.

    The result is None if the tensors are all zero, that is, nothing has been measured yet.

    Raises:
        PayloadMismatchError: if no images can have such statistics.
    """
    shares, sums, mean = (tensors[name].astype(np.float64) for name in (_SHARES, _SUMS, _MEAN))
    if not ((shares >= 0) & (shares <= 1 + _FARTHEST)).all():
        raise PayloadMismatchError(f"'{_SHARES}' contains a share of images that is not between 0 and 1")
    if not any(tensor.any() for tensor in tensors.values()):
        return None
    if not shares.any() or sums[shares == 0].any():
        raise PayloadMismatchError(f"'{_SUMS}' contains features of a class without images according to '{_SHARES}'")
    width, moments = len(mean), None
    if _MOMENTS in tensors:
        moments = _unfold(tensors[_MOMENTS].astype(np.float64) * np.sqrt(width), width)
        # The mean square of features is not negative in any direction.
        smallest, largest = np.linalg.eigvalsh(moments)[[0, -1]]
        if smallest < -_NEGATIVE * largest or largest <= 0:
            raise PayloadMismatchError(f"'{_MOMENTS}' contains a negative mean square")
    scale = np.sqrt(width)
    return ClassStatistics(shares, sums * scale, mean * scale, moments, _RESOLUTION)


def _unfold(upper: Array, width: int) -> Array:
    moments = np.zeros((width, width))
    moments[np.triu_indices(width)] = upper
    return moments + np.triu(moments, 1).T
