"""Update inversion recovers the image where theory predicts it, and its match is never worse than the start."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ept_fed.evaluation.image_similarity import psnr
from ept_fed.privacy.attacks.batch_gradients import batch_gradients, flatten
from ept_fed.privacy.attacks.inversion import align_images, match_gradients, total_variation
from ept_fed.training.losses import LOSSES

SHAPE = (3, 6, 6)
BOUNDS = (torch.zeros(()), torch.ones(()))


def linear_case(batches: int) -> tuple[Tensor, Tensor, object]:
    """Return images, the gradients of a linear model with a bias for them, and the function that computes gradients.

    The gradient of one image is (δ xᵀ, δ). It determines x, even if it is known only up to a positive factor.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batches, 1, *SHAPE, generator=generator)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 3))
    tensors = {name: 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in model.named_parameters()}
    labels = torch.arange(batches)[:, None] % 3

    def gradients_of(guess: Tensor) -> Tensor:
        return flatten(batch_gradients(model, tensors, guess, labels, LOSSES["single_label"]), 1)

    return images, gradients_of(images).detach(), gradients_of


def test_one_image_behind_a_linear_model_is_recovered_exactly() -> None:
    images, observed, gradients_of = linear_case(2)
    start = torch.full_like(images, 0.5)
    # An update of plain SGD is a positive multiple of the descent direction; its length has no more information.
    found = match_gradients(gradients_of, 0.01 * observed, start, BOUNDS, steps=160, rate=0.05, smoothness=0.0)
    for one, other in zip(found, images, strict=True):
        assert psnr(one[0].numpy(), other[0].numpy()) > 50


def test_the_result_stays_in_range_and_never_matches_worse_than_the_start() -> None:
    images, observed, gradients_of = linear_case(3)
    start = torch.rand(images.shape, generator=torch.Generator().manual_seed(5))
    counted = []
    found = match_gradients(
        gradients_of, observed, start, BOUNDS, steps=7, rate=10.0, smoothness=0.0, on_step=lambda: counted.append(1)
    )
    match = [torch.cosine_similarity(gradients_of(guess), observed, dim=1) for guess in (start, found)]
    assert (match[1] >= match[0]).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert len(counted) == 7


def test_total_variation_is_zero_for_flat_images_only() -> None:
    assert total_variation(torch.ones(2, 1, *SHAPE)).tolist() == [0, 0]
    assert (total_variation(torch.rand(2, 1, *SHAPE)) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_permuted_batch_is_put_back_in_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.random((6, *SHAPE))
    order = rng.permutation(6)
    found = true[order]
    assert (found[align_images(found, true)] == true).all()
