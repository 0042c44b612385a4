"""The scaling map against its definition, and its drawing."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ept_fed.models import PromptedViT
from ept_fed.models.scaling_map import scaling_factors, scaling_map
from ept_fed.reports.charts.scaling_map import draw_beside


def test_factors_equal_the_weight_left_by_a_softmax_with_dropped_columns() -> None:
    torch.manual_seed(0)
    logits, P = torch.randn(2, 3, 5, 7, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    columns = P.expand(2, 3, 5, 4)
    naive = torch.softmax(torch.cat([columns, logits], dim=-1), dim=-1)[..., 4:].sum(-1)
    torch.testing.assert_close(scaling_factors(logits, P.logsumexp(-1)), naive, rtol=1e-12, atol=1e-12)


@pytest.fixture(params=[0, 2], ids=["no context", "two context tokens"])
def model(request: pytest.FixtureRequest) -> PromptedViT:
    return PromptedViT.create("test_vit", num_classes=3, prompt_length=4, tokens=request.param, image_size=64).eval()


def test_without_prompts_nothing_is_scaled(model: PromptedViT) -> None:
    with torch.no_grad():
        model.prompts.fill_(-1e4)
    factors = scaling_map(model, torch.randn(2, 3, 64, 64))
    assert factors.shape == (2, *model.vit.patch_embed.grid_size)
    assert torch.equal(factors, torch.ones_like(factors))


def test_a_stronger_prompt_at_one_patch_darkens_only_that_patch(model: PromptedViT) -> None:
    images = torch.randn(1, 3, 64, 64)
    before = scaling_map(model, images)[0]
    rows, columns = before.shape
    with torch.no_grad():
        model.prompts[-1, -rows * columns + 5] += 3.0  # in the last layer, so that the change reaches no later layer
    change = (scaling_map(model, images)[0] - before).flatten()
    assert change[5] < -0.01
    assert change.abs().argmax() == 5
    assert torch.allclose(change[torch.arange(rows * columns) != 5], torch.zeros(()), atol=1e-6)


def test_hooks_are_removed_afterwards(model: PromptedViT) -> None:
    scaling_map(model, torch.randn(1, 3, 64, 64))
    assert not any(block.attn.qkv._forward_hooks for block in model.vit.blocks)


def test_embeddings_without_a_fold_have_no_map() -> None:
    other = PromptedViT.create("test_vit", num_classes=3, prompt_length=4, embedding="multiply_concat", image_size=64)
    with pytest.raises(ValueError, match="cannot be folded"):
        scaling_map(other, torch.randn(1, 3, 64, 64))


def test_the_map_is_drawn_beside_the_picture_and_is_brighter_for_larger_factors() -> None:
    content = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 10, 10)).save(content, "PNG")
    drawn = draw_beside(content.getvalue(), np.array([[0.1, 0.9], [0.5, 0.5]]))
    with Image.open(io.BytesIO(drawn)) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    assert pixels.shape == (40, 86, 3)
    assert (pixels[:, :40] == (200, 10, 10)).all()
    assert pixels[5, 50].sum() < pixels[35, 50].sum() < pixels[5, 80].sum()
