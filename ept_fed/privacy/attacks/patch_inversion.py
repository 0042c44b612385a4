"""Exact reconstruction of one image from the gradients of a ViT's patch embedding and of its position embeddings.

A patch x is embedded as W x + b + e, with its own position embedding e. For one image, the gradient in W is therefore
δᵀ X, the sum over patches of each patch's gradient times its pixels. The gradient in the positions is δ itself. If
there are at most as many patches as dimensions, X follows by least squares. The method is after Lu et al. 2022 (APRIL,
arXiv 2112.14087), who solve for the input of the first attention in the same way. The gradient of a mean over several
images does not have this form.
"""

import numpy as np

from ept_fed.evaluation.metrics import Array

__all__ = ["solve_patches"]


def solve_patches(weight: Array, positions: Array) -> Array:
    """Return the image (3, H, W) that caused these gradients; H and W are multiples of the patch size.

    Args:
        weight: (D, 3, patch, patch), gradient in the patch embedding.
        positions: (H / patch · W / patch, D), gradient in the positions of the patches; the image is square.

    Raises:
        ValueError: if there are more patches than dimensions, or their number is not a square.
    """
    patches, dimensions = positions.shape
    side = round(patches**0.5)
    if patches > dimensions or side * side != patches:
        raise ValueError(f"{patches} patches of {dimensions} dimensions have no unique solution, or form no square")
    channels, patch = weight.shape[1], weight.shape[-1]
    flat = weight.reshape(dimensions, -1).astype(np.float64)
    pixels = np.linalg.lstsq(positions.T.astype(np.float64), flat, rcond=None)[0]
    grid = pixels.reshape(side, side, channels, patch, patch)
    return np.ascontiguousarray(grid.transpose(2, 0, 3, 1, 4)).reshape(channels, side * patch, side * patch)
