"""The mathematics of each comparator."""

import copy

import pytest
import torch
from torch.func import functional_call

from ept_fed.models.blocks import embed_images, run_block
from tests.ept_fed.models.micro_methods import DEPTH, RATES, SIZE, WIDTH, build, images, micro_backbone, step

STARTS_AS_BACKBONE = ["linear", "full", "partial_1", "bias", "lora", "adapter"]


@pytest.mark.parametrize("name", STARTS_AS_BACKBONE)
@pytest.mark.parametrize("options", [{}, {"init_values": 0.1, "reg_tokens": 2}, {"class_token": False}])
def test_an_untrained_comparator_equals_the_frozen_backbone(name: str, options: dict[str, object]) -> None:
    if options.get("class_token") is False:
        options = {**options, "global_pool": "avg"}
    backbone = micro_backbone(**options)
    torch.testing.assert_close(build(name, backbone).forward_features(images()), backbone.vit(images()))


def test_merged_lora_equals_unmerged_lora() -> None:
    model = build("lora", rank=4, alpha=2)
    step(model, 3)
    merged = functional_call(model.vit, model.merge(), (images(),))
    torch.testing.assert_close(merged, model.forward_features(images()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged, model.vit(images()), atol=1e-3)
    delta = model.merge()["blocks.1.attn.qkv.weight"] - model.vit.blocks[1].attn.qkv.weight
    query, key, value = delta.chunk(3)
    assert torch.linalg.matrix_rank(query, tol=1e-5) <= 4
    assert not key.any()
    assert value.any()


@pytest.mark.parametrize(("deep", "layers"), [(1, DEPTH), (0, 1)])
@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}])
def test_vpt_adds_its_tokens_to_every_block_and_removes_them_after_the_last(
    options: dict[str, object], deep: int, layers: int
) -> None:
    backbone = micro_backbone(**options)
    model = build("vpt", backbone, tokens=4, deep=deep)
    assert model.method_tensors()["vpt.tokens"].shape == (layers, 4, WIDTH)
    lengths: list[int] = []
    hooks = [block.register_forward_hook(lambda _m, x, _y: lengths.append(x[0].shape[1])) for block in model.vit.blocks]
    pooled: list[int] = []
    hooks.append(model.vit.norm.register_forward_hook(lambda _m, x, _y: pooled.append(x[0].shape[1])))
    model(images())
    for hook in hooks:
        hook.remove()
    assert lengths == [backbone.num_tokens + 4] * DEPTH
    assert pooled == [backbone.num_tokens]


def test_vpt_is_the_backbone_on_a_sequence_with_the_tokens_in_it() -> None:
    model = build("vpt", tokens=2, deep=0)
    x = embed_images(model.vit, images())
    x = torch.cat([x[:, :1], model.tokens[0].expand(4, -1, -1), x[:, 1:]], dim=1)
    expected = model.vit.norm(model.vit.blocks(x))[:, 0]
    torch.testing.assert_close(model.forward_features(images()), expected)


def test_deep_vpt_gives_every_block_its_own_tokens() -> None:
    model = build("vpt", tokens=2, deep=1)
    x = embed_images(model.vit, images())
    for tokens, block in zip(model.tokens, model.vit.blocks, strict=True):
        x = block(torch.cat([x[:, :1], tokens.expand(4, -1, -1), x[:, 1:]], dim=1))
        x = torch.cat([x[:, :1], x[:, 3:]], dim=1)
    torch.testing.assert_close(model.forward_features(images()), model.vit.norm(x)[:, 0])


@pytest.mark.parametrize("layer", range(DEPTH))
def test_every_block_has_its_own_adapter(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("adapter", reduction=4, scale=0.5)
    with torch.no_grad():
        model.down_bias[layer].fill_(1.0)
        model.up_weight[layer].fill_(0.1)
    met: list[tuple[int, bool]] = []
    bottleneck = model._bottleneck

    def watched(number: int, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = bottleneck(number, x)
        met.append((number, bool(found.any())))
        return found

    monkeypatch.setattr(model, "_bottleneck", watched)
    model(images())
    assert met == [(number, number == layer) for number in range(DEPTH)]


def test_bias_trains_every_bias_and_nothing_else() -> None:
    model = build("bias")
    names = {name for name, _ in model.vit.named_parameters() if name.endswith("bias")}
    assert set(model.method_tensors()) == {f"backbone.{name}" for name in names}
    assert all(tensor.ndim == 1 for tensor in model.method_tensors().values())


def test_partial_1_trains_the_last_block_only() -> None:
    model = build("partial_1")
    last = dict(model.vit.blocks[-1].named_parameters())
    expected = {f"backbone.blocks.{DEPTH - 1}.{name}" for name in last}
    assert set(model.method_tensors()) == expected


def test_adapter_is_a_scaled_bottleneck_on_the_mlps_own_input() -> None:
    model = build("adapter", reduction=4, scale=0.5)
    step(model, 2)
    block, x = model.vit.blocks[0], torch.randn(2, 17, WIDTH, generator=torch.Generator().manual_seed(1))
    after = x + block.attn(block.norm1(x))
    normed = block.norm2(after)
    hidden = torch.relu(normed @ model.down_weight[0].T + model.down_bias[0])
    assert hidden.shape[-1] == WIDTH // 4
    expected = after + block.mlp(normed) + 0.5 * (hidden @ model.up_weight[0].T + model.up_bias[0])
    torch.testing.assert_close(run_block(block, x, beside_mlp=lambda h: model._bottleneck(0, h)), expected)


def test_vp_changes_the_border_only() -> None:
    model = build("vp", pad=5)
    step(model, 2)
    border = model.border()
    assert border.shape == (3, SIZE, SIZE)
    assert not border[:, 5:-5, 5:-5].any()
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[5:-5, 5:-5] = True
    assert bool((border[:, ~inside] != 0).all())
    torch.testing.assert_close(model.forward_features(images()), model.vit(images() + border))


def test_mlp_3_is_three_layers() -> None:
    model = build("mlp_3")
    assert {name: tuple(tensor.shape) for name, tensor in model.method_tensors().items()} == {
        "mlp.weight": (2, WIDTH, WIDTH),
        "mlp.bias": (2, WIDTH),
    }
    first, second = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)
    with torch.no_grad():
        for layer, own, bias in zip((first, second), model.weight, model.bias, strict=True):
            layer.weight.copy_(own)
            layer.bias.copy_(bias)
    stack = torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), model.head)
    torch.testing.assert_close(model(images()), stack(model.vit(images())))


def test_full_takes_the_same_step_as_torch_on_a_copy() -> None:
    model = build("full")
    vit, head = copy.deepcopy(model.vit).requires_grad_(True), copy.deepcopy(model.head)
    groups = [{"params": list(vit.parameters())}, {"params": list(head.parameters())}]
    optimizer = torch.optim.AdamW(groups, lr=0.05, weight_decay=RATES.weight_decay)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(vit(images())), torch.arange(4)).backward()
        optimizer.step()
    step(model, 2)
    copies = model.method_tensors()
    assert set(copies) == {f"backbone.{name}" for name, _ in vit.named_parameters()}
    assert all(torch.equal(copies[f"backbone.{name}"], tensor) for name, tensor in vit.named_parameters())
    assert torch.equal(model.head.weight, head.weight)
