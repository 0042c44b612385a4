"""Tests of every method's prefix: its output in place of images changes nothing, and training does not change it."""

import pytest
import torch

from ept_fed.catalog.methods import METHODS
from ept_fed.config.experiment import ModelSettings
from ept_fed.models import TunedViT, create_model
from ept_fed.models.blocks import run_stages
from tests.ept_fed.models.micro_methods import CLASSES, DEPTH, build, images, micro_backbone, step

STAGES = {
    "ept": 1,
    "linear": DEPTH + 2,
    "full": 0,
    "partial_1": DEPTH,
    "mlp_3": DEPTH + 2,
    "lora": 1,
    "bias": 0,
    "adapter": 1,
    "vp": 0,
    "vpt": 1,
}


def test_every_method_has_as_many_frozen_stages_as_nothing_trainable_is_in() -> None:
    assert {name: build(name).frozen_stages for name in METHODS} == STAGES


@pytest.mark.parametrize("layers", [(0,), (1, 2), (2,), (0, 2)])
def test_prompts_leave_the_blocks_before_the_first_prompted_one_frozen(layers: tuple[int, ...]) -> None:
    settings = ModelSettings(prompt_length=3, tokens=2, prompt_layers=layers)
    model = create_model(settings, micro_backbone(), num_classes=CLASSES, seed=0)
    assert model.frozen_stages == 1 + layers[0]
    check(model)


@pytest.mark.parametrize("name", METHODS)
def test_the_output_of_the_prefix_replaces_the_images(name: str) -> None:
    check(build(name))


def check(model: TunedViT) -> None:
    before = model.forward_prefix(images())
    step(model, 2)
    model.zero_grad()
    assert torch.equal(model.forward_prefix(images()), before)
    found = []
    for inputs in (images(), before):
        model(inputs).square().sum().backward()
        found.append([tensor.grad.clone() for tensor in model.parameters() if tensor.requires_grad])
        model.zero_grad()
    assert torch.equal(model(before), model(images()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_all_stages_are_the_backbone() -> None:
    vit = micro_backbone().vit
    assert torch.equal(run_stages(vit, images(), range(DEPTH + 2)), vit(images()))
