"""Patch inversion: the image is recovered exactly from a patch embedding's gradient, or refused if not determined."""

import numpy as np
import pytest
import torch
from torch import nn

from ept_fed.privacy.attacks.patch_inversion import solve_patches

PATCH, SIDE, DIMENSIONS = 4, 3, 24


@pytest.mark.parametrize("seed", range(3))
def test_one_image_is_recovered_from_the_gradients_of_embedding_and_positions(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3, SIDE * PATCH, SIDE * PATCH, generator=generator)
    embedding = nn.Conv2d(3, DIMENSIONS, PATCH, PATCH)
    positions = torch.randn(SIDE * SIDE, DIMENSIONS, generator=generator, requires_grad=True)
    mixing = torch.randn(SIDE * SIDE * DIMENSIONS, generator=generator)
    # Any loss after the embedding works, because it cancels out.
    tokens = embedding(image).flatten(2).transpose(1, 2)[0] + positions
    loss = (tokens.tanh().flatten() * mixing).sum().square()
    weight, position = torch.autograd.grad(loss, [embedding.weight, positions])
    found = solve_patches(weight.numpy(), position.numpy())
    np.testing.assert_allclose(found, image[0].numpy(), atol=1e-3)


@pytest.mark.parametrize("shape", [(DIMENSIONS + 1, DIMENSIONS), (8, DIMENSIONS)])
def test_an_undetermined_or_non_square_image_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no unique solution"):
        solve_patches(np.zeros((DIMENSIONS, 3, PATCH, PATCH), dtype=np.float32), np.zeros(shape, dtype=np.float32))
