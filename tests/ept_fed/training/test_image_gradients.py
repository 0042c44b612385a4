"""Gradients per image: they equal those of separate backward passes, and clipping bounds every image's influence."""

import dataclasses

import pytest
import torch
from torch import Tensor

from ept_fed.models import PromptedViT
from ept_fed.training.image_gradients import ImageGradients, find_image_gradients, lay_down_gradients
from ept_fed.training.losses import IMAGE_LOSSES, LOSSES

CLASSES = 3


def create(tokens: int, head: bool, dtype: torch.dtype = torch.float64) -> PromptedViT:
    model = PromptedViT.create("test_vit", num_classes=CLASSES, prompt_length=4, tokens=tokens, image_size=32)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(2))
    model.head.requires_grad_(head)
    return model.to(dtype)


def draw(batch: int, task: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    images = torch.randn(batch, 3, 32, 32, generator=generator, dtype=dtype)
    labels = torch.randint(0, CLASSES, (batch,), generator=generator)
    return images, labels if task == "single_label" else torch.eye(CLASSES, dtype=dtype)[labels]


def one_by_one(model: PromptedViT, images: Tensor, labels: Tensor, task: str) -> list[list[Tensor]]:
    """Return the gradients of every trained parameter for every image, with one backward pass per image."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        list(torch.autograd.grad(LOSSES[task](model(images[i : i + 1]), labels[i : i + 1]), parameters))
        for i in range(len(images))
    ]


def laid_down(model: PromptedViT, sums: dict[str, Tensor]) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    lay_down_gradients(model, sums)
    return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def only(found: ImageGradients, i: int) -> ImageGradients:
    """Return only the gradients of image i, as a batch of one."""
    part = slice(i, i + 1)
    return ImageGradients(
        found.sinks[:, part],
        None if found.tokens is None else found.tokens[:, part],
        None if found.logits is None else found.logits[part],
        found.features[part],
    )


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
@pytest.mark.parametrize("tokens", [0, 2])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_image_gradients_equal_those_of_separate_backward_passes(
    task: str, tokens: int, head: bool, batch: int
) -> None:
    model = create(tokens, head)
    images, labels = draw(batch, task)
    found = find_image_gradients(model, images, labels, IMAGE_LOSSES[task])
    for i, wanted in enumerate(one_by_one(model, images, labels, task)):
        sums, left_out = only(found, i).clipped_sum(1e9)
        assert left_out == 0
        for have, want in zip(laid_down(model, sums), wanted, strict=True):
            torch.testing.assert_close(have, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tokens", [0, 1])
def test_the_fast_attention_in_float32_gives_the_same_gradients(tokens: int) -> None:
    model = create(tokens, True, torch.float32)
    images, labels = draw(4, "single_label", torch.float32)
    found = find_image_gradients(model, images, labels, IMAGE_LOSSES["single_label"])
    sums, _ = found.clipped_sum(1e9)
    alone = one_by_one(model, images, labels, "single_label")
    wanted = [torch.stack(gradients).sum(0) for gradients in zip(*alone, strict=True)]
    for have, want in zip(laid_down(model, sums), wanted, strict=True):
        assert (have - want).norm() <= 1e-4 * want.norm()


@pytest.mark.parametrize("tokens", [0, 2])
def test_the_norm_of_an_image_covers_all_its_tensors_and_is_clipped(tokens: int) -> None:
    model = create(tokens, True)
    images, labels = draw(4, "single_label")
    found = find_image_gradients(model, images, labels, IMAGE_LOSSES["single_label"])
    clip = float(found.norms().median())
    for i, norm in enumerate(found.norms().tolist()):
        whole, _ = only(found, i).clipped_sum(1e9)
        length = torch.cat([tensor.flatten() for tensor in whole.values()]).norm().item()
        assert length == pytest.approx(norm)
        clipped, _ = only(found, i).clipped_sum(clip)
        assert torch.cat([tensor.flatten() for tensor in clipped.values()]).norm().item() <= clip * (1 + 1e-12)
        for name, tensor in clipped.items():
            torch.testing.assert_close(tensor, whole[name] * min(1.0, clip / norm))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["sinks", "tokens", "logits", "features"])
def test_an_image_whose_gradient_is_not_finite_is_left_out_and_counted(bad: float, where: str) -> None:
    model = create(1, True)
    images, labels = draw(3, "single_label")
    found = find_image_gradients(model, images, labels, IMAGE_LOSSES["single_label"])
    broken = getattr(found, where).clone()
    of_image = (broken if where in ("logits", "features") else broken.transpose(0, 1))[1]
    of_image[(0,) * of_image.dim()] = bad
    sums, left_out = dataclasses.replace(found, **{where: broken}).clipped_sum(0.1)
    assert left_out == 1
    others = [only(found, i).clipped_sum(0.1)[0] for i in (0, 2)]
    for name, tensor in sums.items():
        torch.testing.assert_close(tensor, others[0][name] + others[1][name])


def test_a_damaged_image_does_not_change_the_others() -> None:
    model = create(1, True, torch.float32)
    images, labels = draw(3, "single_label", torch.float32)
    images[1, 0, 0, 0] = torch.nan
    sums, left_out = find_image_gradients(model, images, labels, IMAGE_LOSSES["single_label"]).clipped_sum(0.1)
    assert left_out == 1
    assert all(torch.isfinite(tensor).all() for tensor in sums.values())
    assert sums["sinks"].norm() > 0


def test_a_gradient_of_zero_stays_zero() -> None:
    zero = torch.zeros
    sums, left_out = ImageGradients(zero(2, 3, 4), None, zero(3, 5), torch.ones(3, 6)).clipped_sum(1.0)
    assert left_out == 0
    assert all(tensor.abs().max() == 0 for tensor in sums.values())


def test_the_mean_of_the_losses_per_image_is_the_loss_of_the_batch() -> None:
    for task, loss in LOSSES.items():
        _, labels = draw(5, task)
        logits = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        torch.testing.assert_close(IMAGE_LOSSES[task](logits, labels).mean(), loss(logits, labels))


def test_prompts_without_a_fold_are_refused() -> None:
    model = PromptedViT.create("test_vit", num_classes=2, prompt_length=4, image_size=32, embedding="multiply_concat")
    with pytest.raises(ValueError, match="cannot be folded"):
        find_image_gradients(model, torch.zeros(1, 3, 32, 32), torch.tensor([0]), IMAGE_LOSSES["single_label"])
