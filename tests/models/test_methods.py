"""Every method of the registry keeps the interface's promises; then each one's own mathematics."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from timm.models.vision_transformer import VisionTransformer
from torch.func import functional_call

from ept_fed.config import Experiment, ModelSettings, TrainingSettings
from ept_fed.data.input_spec import InputSpec
from ept_fed.methods import METHODS, find_senders, may_travel
from ept_fed.models import MODELS, TunedViT, create_model, digest_tensors, frozen_tensors
from ept_fed.models.backbones import Backbone
from ept_fed.models.blocks import embed_images
from ept_fed.models.payload import export_payload, import_payload, payload_layout
from ept_fed.problems import InputRefusedError
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError
from ept_fed.reports.progress import Silent
from ept_fed.training.optimizer import build_optimizer
from simulations.simulate import simulate
from simulations.virtual_sites import prepare_federation

SIZE, PATCH, DEPTH, WIDTH, CLASSES = 32, 8, 3, 24, 5
CLASS_NAMES = [f"class {index}" for index in range(CLASSES)]
SETTINGS: dict[str, ModelSettings] = {name: ModelSettings(method=name) for name in METHODS} | {
    "ept": ModelSettings(prompt_length=3, tokens=1),
    "vp": ModelSettings(method="vp", method_options={"pad": 4}),
}
RATES = TrainingSettings(method_lr=0.05, prompt_lr=0.05, token_lr=0.05, head_lr=0.05)
COMPARATORS = [name for name in METHODS if name != "ept"]
STARTS_AS_BACKBONE = ["linear", "full", "partial_1", "bias", "lora", "adapter"]


def micro_backbone(**options: object) -> Backbone:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=3, num_classes=0, **options
    )
    with torch.no_grad():
        for name, tensor in vit.named_parameters():
            if name.endswith(".bias"):
                tensor.normal_(0.0, 0.1)
    vit.requires_grad_(False).eval()
    spec = InputSpec(size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
    return Backbone("micro", vit, digest_tensors(frozen_tensors(vit)), spec)


def build(name: str, backbone: Backbone | None = None, *, seed: int = 0, **options: float) -> TunedViT:
    settings = SETTINGS[name].model_copy(update={"method_options": options or SETTINGS[name].method_options})
    return create_model(settings, backbone or micro_backbone(), num_classes=CLASSES, seed=seed)


def images(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7))


def step(model: TunedViT, steps: int = 1) -> None:
    optimizer = build_optimizer(model, RATES)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images()), torch.arange(4)).backward()
        optimizer.step()
    model.eval()


def trainable(model: TunedViT) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def payload_of(name: str) -> str:
    return "folded" if name == "ept" else "raw"


def test_catalogue_and_registry_name_the_same_methods() -> None:
    assert set(METHODS) == set(MODELS)


@pytest.mark.parametrize("name", METHODS)
def test_exactly_the_methods_tensors_and_the_head_are_trained(name: str) -> None:
    model = build(name)
    promised = {id(tensor) for tensor in (*model.method_tensors().values(), *model.head.parameters())}
    assert {id(tensor) for tensor in trainable(model).values()} == promised
    groups = build_optimizer(model, RATES).param_groups
    assert {id(tensor) for group in groups for tensor in group["params"]} == promised
    before = {key: tensor.detach().clone() for key, tensor in trainable(model).items()}
    step(model, 3)
    assert {key for key, tensor in trainable(model).items() if not torch.equal(tensor, before[key])} == set(before)


@pytest.mark.parametrize("name", METHODS)
def test_training_leaves_the_shared_backbone_and_its_other_users_alone(name: str) -> None:
    backbone = micro_backbone()
    trained, bystander = build(name, backbone), build(name, backbone)
    plain, seen = backbone.vit(images()), bystander.eval()(images())
    step(trained, 2)
    assert digest_tensors(frozen_tensors(backbone.vit)) == backbone.digest
    assert not any(tensor.requires_grad for tensor in backbone.vit.parameters())
    assert not backbone.vit.training
    assert torch.equal(backbone.vit(images()), plain)
    assert torch.equal(bystander(images()), seen)
    assert not torch.equal(trained(images()), seen)


@pytest.mark.parametrize("name", METHODS)
def test_equal_seeds_give_equal_models_and_the_global_generator_is_left_alone(name: str) -> None:
    backbone = micro_backbone()
    state = torch.get_rng_state()
    first, again, other = (build(name, backbone, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first(images()), again(images()))
    assert not torch.equal(first(images()), other(images()))


@pytest.mark.parametrize("share", ["prompts", "prompts+head"])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_sent_arrives(name: str, share: str) -> None:
    if share == "prompts" and not METHODS[name].sends_without_head:
        pytest.skip("nothing to send")
    backbone = micro_backbone()
    sender, receiver = build(name, backbone, seed=1), build(name, backbone, seed=2)
    step(sender, 2)
    layout = payload_layout(sender, share=share, payload=payload_of(name), classes=CLASS_NAMES)
    assert layout == payload_layout(receiver, share=share, payload=payload_of(name), classes=CLASS_NAMES)
    sent = export_payload(sender, layout)
    import_payload(receiver, sent, layout)
    np.testing.assert_allclose(export_payload(receiver, layout), sent, atol=1e-5)
    if share == "prompts+head":
        torch.testing.assert_close(receiver.eval()(images()), sender(images()))
    assert all(METHODS[name].may_send(tensor) for tensor, _ in layout.shapes)


@pytest.mark.parametrize("name", COMPARATORS)
def test_a_comparator_asked_to_fold_refuses(name: str) -> None:
    with pytest.raises(ValueError, match="nothing to fold"):
        build(name).payload_tensors(share="prompts+head", payload="folded")


@pytest.mark.parametrize("name", COMPARATORS)
def test_unfit_payloads_are_refused(name: str) -> None:
    model = build(name)
    with pytest.raises(KeyError):
        model.load_payload({"sinks": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match="this model needs"):
        model.load_payload({"head.bias": torch.zeros(CLASSES + 1)})


def test_methods_do_not_mix_and_layouts_know_their_method() -> None:
    assert may_travel("backbone.blocks.0.attn.qkv.weight")
    assert not may_travel("blocks.0.attn.qkv.weight")
    assert not may_travel("backbone.../../x y")
    assert not may_travel("backbone.a.bias\n")
    assert find_senders(["backbone.blocks.2.norm1.bias", "head.bias"]) == ["full", "partial_1", "bias"]
    with pytest.raises(PayloadMismatchError, match="no method sends"):
        PayloadLayout((("sinks", (1, 2)), ("lora.query.up", (1, 2, 3))))
    backbone = micro_backbone()
    layouts = {
        payload_layout(model, share="prompts", payload="raw", classes=CLASS_NAMES).hash
        for model in (build("lora", backbone, rank=2, alpha=2), build("lora", backbone, rank=2, alpha=4))
    }
    assert len(layouts) == 2


@pytest.mark.parametrize("name", METHODS)
def test_methods_federate_and_send_what_they_say(name: str, micro: Callable[..., Experiment], tmp_path: Path) -> None:
    share = "prompts" if METHODS[name].sends_without_head else "prompts+head"
    experiment = micro(
        f"model.method={name}", f"federation.payload={payload_of(name)}", f"federation.share={share}",
        "federation.rounds=1", "evaluation.baselines=[]",
    )  # fmt: skip
    model = prepare_federation(experiment).slot.model
    report = simulate(experiment, tmp_path / "run", Silent())
    assert report["status"] == "done"
    tensors = load_file(tmp_path / "run" / "prompts" / "round-001.safetensors")
    expected = model.payload_tensors(share=share, payload=payload_of(name))
    assert {key: tensor.shape for key, tensor in tensors.items()} == {k: tuple(t.shape) for k, t in expected.items()}
    assert report["payload"]["bytes"] == sum(4 * tensor.numel() for tensor in expected.values())
    start = load_file(tmp_path / "run" / "prompts" / "round-000.safetensors")
    assert any(not np.array_equal(tensors[key], start[key]) for key in tensors)


@pytest.mark.parametrize(
    ("overrides", "field", "said"),
    [
        (("model.method=lorra",), "model.method", "did you mean 'lora'? known are ept, linear"),
        (("model.method=lora",), "federation.payload", "set federation.payload=raw"),
        (("model.method=linear", "federation.payload=raw"), "federation.share", "set it to prompts+head"),
        (("model.method_options={rank: 4}",), "model.method_options.rank", "ept has no such option; it has: none"),
        (
            ("model.method=lora", "federation.payload=raw", "model.method_options={rank: 1.5}"),
            "model.method_options.rank",
            "must be a whole number from 1 to 1024",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_once(
    overrides: tuple[str, ...], field: str, said: str, micro: Callable[..., Experiment]
) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        micro(*overrides)
    problems = [problem for problem in refusal.value.problems if problem.field == field]
    assert len(problems) == len(refusal.value.problems) == 1
    assert said in problems[0].fix


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("lora", {"rank": WIDTH + 1}, "model.method_options.rank"),
        ("adapter", {"reduction": WIDTH + 1}, "model.method_options.reduction"),
        ("vp", {"pad": SIZE // 2}, "model.method_options.pad"),
    ],
)
def test_a_method_that_cannot_run_on_the_backbone_is_refused(
    name: str, options: Mapping[str, float], field: str
) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        build(name, **options)
    assert [problem.field for problem in refusal.value.problems] == [field]


def test_such_a_refusal_comes_before_the_run_starts(micro: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = micro("model.method=vp", "federation.payload=raw", "model.method_options={pad: 32}")
    with pytest.raises(InputRefusedError, match="all border"):
        simulate(experiment, tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"init_values": 0.1, "qk_norm": True},
        {"reg_tokens": 2, "no_embed_class": True},
        {"global_pool": "avg"},
        {"class_token": False, "global_pool": "map"},
        {"pre_norm": True, "qkv_bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", METHODS)
def test_methods_train_in_every_kind_of_backbone_that_is_supported(name: str, options: dict[str, object]) -> None:
    backbone = micro_backbone(**options)
    model = build(name, backbone)
    step(model, 2)
    assert model.forward_features(images()).shape == (4, WIDTH)
    assert torch.isfinite(model(images())).all()
    assert digest_tensors(frozen_tensors(backbone.vit)) == backbone.digest


def test_a_backbone_without_what_a_method_trains_is_refused() -> None:
    backbone = micro_backbone()
    bare = torch.nn.Module()
    bare.num_features = WIDTH
    with pytest.raises(InputRefusedError, match="no tensors of the kind"):
        build("bias", Backbone("bare", bare, "", backbone.input))


@pytest.mark.parametrize("name", STARTS_AS_BACKBONE)
@pytest.mark.parametrize("options", [{}, {"init_values": 0.1, "reg_tokens": 2}, {"class_token": False}])
def test_the_start_is_the_frozen_backbone(name: str, options: dict[str, object]) -> None:
    if options.get("class_token") is False:
        options = {**options, "global_pool": "avg"}
    backbone = micro_backbone(**options)
    torch.testing.assert_close(build(name, backbone).forward_features(images()), backbone.vit(images()))


def test_lora_merged_computes_what_unmerged_does() -> None:
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
def test_vpt_puts_its_tokens_into_every_block_and_takes_them_out(
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


def test_deep_vpt_gives_every_block_tokens_of_its_own() -> None:
    model = build("vpt", tokens=2, deep=1)
    x = embed_images(model.vit, images())
    for tokens, block in zip(model.tokens, model.vit.blocks, strict=True):
        x = block(torch.cat([x[:, :1], tokens.expand(4, -1, -1), x[:, 1:]], dim=1))
        x = torch.cat([x[:, :1], x[:, 3:]], dim=1)
    torch.testing.assert_close(model.forward_features(images()), model.vit.norm(x)[:, 0])


@pytest.mark.parametrize("layer", range(DEPTH))
def test_every_block_has_an_adapter_of_its_own(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
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
    from ept_fed.models.blocks import run_block

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


def test_full_takes_the_step_that_torch_takes_on_a_copy() -> None:
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
