"""Every method of the registry fulfils the contract of the interface."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ept_fed.catalog.methods import HEAD_TENSORS, METHODS, find_senders, may_travel
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.models import TunedViT, digest_tensors, find_class, frozen_tensors
from ept_fed.models.backbones import Backbone
from ept_fed.progress import Silent
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError
from ept_fed.training.optimizer import build_optimizer
from ept_fed.training.payload import export_payload, import_payload, payload_layout
from simulations.engine.simulate import simulate
from simulations.engine.virtual_sites import prepare_federation
from tests.ept_fed.models.micro_methods import (
    CLASSES,
    DEPTH,
    PATCH,
    RATES,
    SIZE,
    WIDTH,
    build,
    images,
    micro_backbone,
    step,
)

pytestmark = pytest.mark.usefixtures("undrawn")

CLASS_NAMES = [f"class {index}" for index in range(CLASSES)]
COMPARATORS = [name for name in METHODS if name != "ept"]

# Sizes of the micro ViT: patches and cls token, the MLP's width, and the parameters of a block in layer order.
TOKENS, HIDDEN, HEAD = (SIZE // PATCH) ** 2 + 1, 4 * WIDTH, CLASSES * (WIDTH + 1)
NORM, ATTENTION, MLP = 2 * WIDTH, 4 * WIDTH * (WIDTH + 1), HIDDEN * (WIDTH + 1) + WIDTH * (HIDDEN + 1)
BLOCK = NORM + ATTENTION + NORM + MLP
# How many numbers each method sends without the head, for the settings of tests/ept_fed/models/micro_methods.py.
NUMBERS = {
    "ept": DEPTH * ((TOKENS + 1) + WIDTH),  # a sink per token, and one context token
    "linear": 0,
    "full": 3 * PATCH**2 * WIDTH + WIDTH + WIDTH + TOKENS * WIDTH + DEPTH * BLOCK + NORM,
    "partial_1": BLOCK,
    "mlp_3": 2 * WIDTH * (WIDTH + 1),
    "lora": DEPTH * 2 * 2 * 8 * WIDTH,  # up and down, of query and value, of rank 8
    "bias": WIDTH + DEPTH * (WIDTH + 3 * WIDTH + WIDTH + WIDTH + HIDDEN + WIDTH) + WIDTH,
    "adapter": DEPTH * (2 * WIDTH * (WIDTH // 8) + WIDTH // 8 + WIDTH),
    "vp": 3 * (SIZE**2 - (SIZE - 2 * 4) ** 2),
    "vpt": DEPTH * 10 * WIDTH,
}


def trainable(model: TunedViT) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def payload_of(name: str) -> str:
    return "folded" if name == "ept" else "raw"


def test_every_method_of_the_catalogue_has_a_class_of_its_name() -> None:
    assert {name: find_class(name).method for name in METHODS} == {name: name for name in METHODS}


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
def test_training_does_not_change_the_shared_backbone_or_its_other_users(name: str) -> None:
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


@pytest.mark.parametrize(
    ("name", "share"),
    [
        (name, share)
        for name in METHODS
        for share in ("prompts", "prompts+head")
        if share == "prompts+head" or METHODS[name].sends_without_head
    ],
)
def test_the_receiver_gets_the_payload_that_was_sent(name: str, share: str) -> None:
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


@pytest.mark.parametrize("name", METHODS)
def test_the_payload_has_as_many_bytes_as_the_method_needs(name: str) -> None:
    model = build(name)
    for share, head in (("prompts", 0), ("prompts+head", HEAD)):
        sent = model.payload_tensors(share=share, payload=payload_of(name))
        assert sum(4 * tensor.numel() for tensor in sent.values()) == 4 * (NUMBERS[name] + head)
    if name == "ept":
        raw = model.payload_tensors(share="prompts", payload="raw")
        assert sum(tensor.numel() for tensor in raw.values()) == DEPTH * ((TOKENS + 1) * 3 + WIDTH)


@pytest.mark.parametrize("name", METHODS)
def test_exactly_the_tensors_of_the_catalogue_are_sent(name: str) -> None:
    model, info = build(name), METHODS[name]
    forms = ("folded", "raw") if name == "ept" else ("raw",)
    sent = {key for form in forms for key in model.payload_tensors(share="prompts", payload=form)}
    named = set(info.tensors)
    if info.backbone_tensors is not None:
        own = [key for key in model.vit.state_dict() if re.fullmatch(info.backbone_tensors, key)]
        named |= {f"backbone.{key}" for key in own if name != "partial_1" or key.startswith(f"blocks.{DEPTH - 1}.")}
    assert sent == named
    whole = {key for form in forms for key in model.payload_tensors(share="prompts+head", payload=form)}
    assert whole == named | set(HEAD_TENSORS)


@pytest.mark.parametrize("name", COMPARATORS)
def test_a_comparator_refuses_to_fold(name: str) -> None:
    with pytest.raises(ValueError, match="nothing to fold"):
        build(name).payload_tensors(share="prompts+head", payload="folded")


@pytest.mark.parametrize("name", COMPARATORS)
def test_payloads_that_do_not_fit_are_refused(name: str) -> None:
    model = build(name)
    with pytest.raises(KeyError):
        model.load_payload({"sinks": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match="this model needs"):
        model.load_payload({"head.bias": torch.zeros(CLASSES + 1)})


def test_payloads_of_different_methods_cannot_be_mixed() -> None:
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


@pytest.mark.integration
@pytest.mark.parametrize("name", METHODS)
def test_methods_federate_and_send_their_declared_tensors(
    name: str, micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    share = "prompts" if METHODS[name].sends_without_head else "prompts+head"
    experiment = micro(
        f"model.method={name}", f"federation.payload={payload_of(name)}", f"federation.share={share}",
        "federation.rounds=1", "evaluation.baselines=[]", "data.phantom_sites=2",
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
        (("model.method=lorra",), "model.method", "did you mean 'lora'? known methods are ept, linear"),
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
def test_invalid_settings_are_refused_once(
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


def test_an_unsuitable_method_is_refused_before_the_run_starts(
    micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = micro("model.method=vp", "federation.payload=raw", "model.method_options={pad: 32}")
    with pytest.raises(InputRefusedError, match="covers the whole image"):
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
def test_methods_train_in_every_supported_kind_of_backbone(name: str, options: dict[str, object]) -> None:
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
    with pytest.raises(InputRefusedError, match="none of the tensors"):
        build("bias", Backbone("bare", bare, "", backbone.input))
