"""PromptedViT with micro ViTs that exist only for these tests."""

from collections.abc import Callable

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from ept_fed.errors import InputRefusedError
from ept_fed.models import PromptedViT, digest_tensors, frozen_tensors
from ept_fed.models.backbones import Backbone, create_backbone
from ept_fed.models.embedding import EMBEDDINGS, FOLDABLE
from ept_fed.training.payload import export_payload, import_payload, payload_layout

SIZE, PATCH, DEPTH, WIDTH, CLASSES = 32, 8, 3, 24, 5
NUM_PATCHES = (SIZE // PATCH) ** 2

VARIANTS = {
    "plain": {},
    "layer scale": {"init_values": 0.1},
    "registers": {"reg_tokens": 3},
    "no position for cls": {"reg_tokens": 2, "no_embed_class": True},
    "normed q and k": {"qk_norm": True},
    "average pool": {"global_pool": "avg"},
    "no cls token": {"class_token": False, "global_pool": "avg"},
    "attention pool": {"class_token": False, "global_pool": "map"},
    "pre-norm": {"pre_norm": True},
    "dynamic size": {"dynamic_img_size": True},
}


def micro_backbone(seed: int = 0, **options: object) -> Backbone:
    from ept_fed.data.datasets.input_spec import InputSpec

    torch.manual_seed(seed)
    vit = VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=3, num_classes=0, **options
    )
    vit.requires_grad_(False).eval()
    spec = InputSpec(size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
    return Backbone("micro", vit, digest_tensors(frozen_tensors(vit)), spec)


def images(batch: int = 4, size: int = SIZE) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_prompts_of_zero_weight_do_not_change_the_output_of_the_backbone(options: dict[str, object]) -> None:
    backbone = micro_backbone(**options)
    model = PromptedViT(backbone, num_classes=CLASSES, prompt_length=2)
    with torch.no_grad():
        model.prompts.fill_(-1e9)
    torch.testing.assert_close(model.forward_features(images()), backbone.vit(images()))


@pytest.mark.parametrize("tokens", [0, 2])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_folding_preserves_logits(options: dict[str, object], tokens: int) -> None:
    backbone = micro_backbone(**options)
    model = PromptedViT(backbone, num_classes=CLASSES, prompt_length=100, tokens=tokens, seed=1)
    with torch.no_grad():
        model.prompts.add_(torch.randn(model.prompts.shape, generator=torch.Generator().manual_seed(3)))
    folded = PromptedViT(backbone, num_classes=CLASSES, prompt_length=1, tokens=tokens, seed=2)
    folded.load_payload(model.payload_tensors(share="prompts+head", payload="folded"))
    assert folded.prompts.shape[-1] == 1
    torch.testing.assert_close(folded(images()), model(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "expected"), [("deep", (0, 1, 2)), ("late", (2,)), ("shallow", (0,)), ([2, 0], (0, 2)), ((1,), (1,))]
)
@pytest.mark.parametrize("tokens", [0, 2])
def test_prompts_act_in_the_named_layers_only(layers: object, expected: tuple[int, ...], tokens: int) -> None:
    model = PromptedViT(micro_backbone(), num_classes=CLASSES, prompt_length=3, prompt_layers=layers, tokens=tokens)
    assert model.layers == expected
    assert model.prompts.shape == (len(expected), 1 + NUM_PATCHES + tokens, 3)
    model(images()).sum().backward()
    assert (model.prompts.grad.flatten(1).abs().sum(1) > 0).all()


def test_a_shallow_prompt_equals_a_deep_one_with_zero_weight_in_the_other_layers() -> None:
    backbone = micro_backbone()
    shallow = PromptedViT(backbone, num_classes=CLASSES, prompt_length=3, prompt_layers="shallow")
    deep = PromptedViT(backbone, num_classes=CLASSES, prompt_length=3)
    with torch.no_grad():
        deep.prompts.fill_(-1e9)
        deep.prompts[0] = shallow.prompts[0]
    torch.testing.assert_close(shallow.forward_features(images()), deep.forward_features(images()))


def test_context_tokens_are_replaced_layer_by_layer() -> None:
    """Each layer's token reaches the logits only through that layer: a change of one changes them, and all train."""
    model = PromptedViT(micro_backbone(), num_classes=CLASSES, prompt_length=3, tokens=2)
    model(images()).sum().backward()
    assert (model.tokens.grad.flatten(1).abs().sum(1) > 0).all()
    before = model(images())
    with torch.no_grad():
        model.tokens[1, 0, 0] += 1
    assert not torch.equal(before, model(images()))


def test_the_backbone_never_changes_and_never_gets_a_gradient() -> None:
    model = PromptedViT(micro_backbone(), num_classes=CLASSES, prompt_length=3, tokens=1)
    before = digest_tensors(frozen_tensors(model.vit))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(images()), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    assert digest_tensors(frozen_tensors(model.vit)) == before == model.backbone.digest
    assert all(parameter.grad is None for parameter in model.vit.parameters())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"embedded.prompts", "embedded.tokens", "head.weight", "head.bias"}


def test_training_mode_does_not_enable_the_backbones_dropout() -> None:
    backbone = micro_backbone(drop_path_rate=0.5, proj_drop_rate=0.5, pos_drop_rate=0.5)
    model = PromptedViT(backbone, num_classes=CLASSES, prompt_length=3).train()
    assert torch.equal(model(images()), model(images()))


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_every_embedding_trains_its_prompts(embedding: str) -> None:
    model = PromptedViT(
        micro_backbone(), num_classes=CLASSES, prompt_length=1 + NUM_PATCHES, embedding=embedding, seed=3
    )
    model(images()).square().sum().backward()
    assert (model.prompts.grad.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("embedding", sorted(set(EMBEDDINGS) - {"concat"}))
def test_zero_prompts_of_add_and_multiply_do_not_change_the_attention(embedding: str) -> None:
    backbone = micro_backbone()
    model = PromptedViT(backbone, num_classes=CLASSES, prompt_length=1 + NUM_PATCHES, embedding=embedding, init="zero")
    same = torch.allclose(model.forward_features(images()), backbone.vit(images()), atol=1e-5)
    assert same == (embedding in {"add", "multiply"})


def test_multiply_concat_follows_the_papers_formula() -> None:
    q, k, v = (torch.randn(2, 3, 9, 4, generator=torch.Generator().manual_seed(s)).double() for s in range(3))
    P = torch.randn(9, 5, generator=torch.Generator().manual_seed(4)).double()
    A = (q @ k.transpose(-2, -1)) / 2
    alpha = (A.max(-1).values - A.min(-1).values).unsqueeze(-1)
    want = torch.cat([alpha * P, A], -1).softmax(-1)[..., 5:] @ v
    torch.testing.assert_close(EMBEDDINGS["multiply_concat"](q, k, v, P), want)


@pytest.mark.parametrize(
    ("embedding", "embed"), [("add", lambda A, P: A + P), ("multiply", lambda A, P: A + A * P)], ids=["add", "multiply"]
)
def test_add_and_multiply_change_the_logits_by_query_and_key(
    embedding: str, embed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> None:
    q, k, v = (torch.randn(2, 3, 9, 4, generator=torch.Generator().manual_seed(s)).double() for s in range(3))
    P = torch.randn(9, 9, generator=torch.Generator().manual_seed(4)).double()
    want = embed((q @ k.transpose(-2, -1)) / 2, P).softmax(-1) @ v
    torch.testing.assert_close(EMBEDDINGS[embedding](q, k, v, P), want)


@pytest.mark.parametrize("embedding", sorted(set(EMBEDDINGS) - FOLDABLE))
def test_folding_that_would_be_wrong_is_refused_with_the_reason(embedding: str) -> None:
    model = PromptedViT(micro_backbone(), num_classes=CLASSES, prompt_length=1 + NUM_PATCHES, embedding=embedding)
    with pytest.raises(ValueError, match="cannot be folded: "):
        model.fold()
    with pytest.raises(ValueError, match="cannot be folded"):
        model.payload_tensors(share="prompts", payload="folded")
    assert set(model.payload_tensors(share="prompts", payload="raw")) == {"prompts"}


def test_add_needs_a_square_prompt_and_states_the_length() -> None:
    with pytest.raises(InputRefusedError, match=f"set prompt_length to {1 + NUM_PATCHES}"):
        PromptedViT(micro_backbone(), num_classes=CLASSES, prompt_length=100, embedding="add")


@pytest.mark.parametrize("payload", ["folded", "raw"])
@pytest.mark.parametrize("share", ["prompts", "prompts+head"])
@pytest.mark.parametrize("tokens", [0, 2])
def test_a_payload_contains_exactly_its_declared_tensors(payload: str, share: str, tokens: int) -> None:
    backbone = micro_backbone()
    sender, receiver = (
        PromptedViT(backbone, num_classes=CLASSES, prompt_length=7, tokens=tokens, seed=seed) for seed in (1, 2)
    )
    with torch.no_grad():
        sender.prompts.add_(1.5)
    layout = payload_layout(sender, share=share, payload=payload, classes="abcde")
    vector = export_payload(sender, layout)
    import_payload(receiver, vector, layout)
    torch.testing.assert_close(receiver.fold(), sender.fold())
    assert torch.equal(receiver.head.weight, sender.head.weight) == (share == "prompts+head")
    assert torch.equal(receiver.prompts, sender.prompts) == (payload == "raw")
    L, N, M, D = DEPTH, 1 + NUM_PATCHES, 7, WIDTH
    sinks = L * (N + tokens) * (M if payload == "raw" else 1)
    head = CLASSES * (D + 1) if share == "prompts+head" else 0
    assert vector.size == layout.size == sinks + L * tokens * D + head


def test_the_layout_hash_depends_on_layers_embedding_and_shared_classes() -> None:
    backbone = micro_backbone()

    def digest(share: str = "prompts", classes: str = "abcde", **options: object) -> str:
        model = PromptedViT(backbone, num_classes=CLASSES, prompt_length=1 + NUM_PATCHES, **options)
        return payload_layout(model, share=share, payload="raw", classes=classes).hash

    assert digest(prompt_layers=[0, 1]) != digest(prompt_layers=[1, 2])
    assert digest(embedding="concat") != digest(embedding="multiply_concat")
    assert digest(classes="abcde") == digest(classes="edcba")
    assert digest("prompts+head", classes="abcde") != digest("prompts+head", classes="edcba")


def test_images_of_another_size_are_refused_with_the_right_one() -> None:
    model = PromptedViT(micro_backbone(dynamic_img_size=True), num_classes=CLASSES, prompt_length=2)
    with pytest.raises(ValueError, match="resize them to 32×32"):
        model(images(size=48))


@pytest.mark.parametrize("layers", [[], [3], [-1], [0, 0]])
def test_layers_that_do_not_exist_are_refused(layers: list[int]) -> None:
    with pytest.raises(InputRefusedError, match="between 0 and 2"):
        PromptedViT(micro_backbone(), num_classes=CLASSES, prompt_layers=layers)


def test_create_is_seeded_and_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    models = [
        PromptedViT.create("test_vit", num_classes=3, prompt_length=2, image_size=64, seed=seed) for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    digests = [model.backbone.digest for model in models]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(models[0].prompts, models[1].prompts)
    assert torch.equal(models[0].head.weight, models[1].head.weight)
    assert models[0](images(2, 64)).shape == (2, 3)


@pytest.mark.parametrize(
    "name",
    ["deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224", "vit_wee_patch16_reg1_gap_256"],
)
def test_timm_families_work_at_another_image_size(name: str) -> None:
    model = PromptedViT.create(name, num_classes=3, prompt_length=2, tokens=1, image_size=64)
    assert model(images(2, 64)).shape == (2, 3)


@pytest.mark.parametrize("weights", [None, "pretrained"])
@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"])
def test_other_architectures_are_refused_with_the_supported_ones_before_any_download(
    name: str, weights: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *_a, **_k: pytest.fail("was downloaded"))
    with pytest.raises(InputRefusedError, match="supported are timm VisionTransformers"):
        create_backbone(name, weights=weights, image_size=None, seed=0)


def test_an_unknown_name_is_refused_with_similar_names() -> None:
    with pytest.raises(InputRefusedError, match="vit_tiny_patch16_224"):
        create_backbone("vit_tiny_patch16_225", weights=None, image_size=None, seed=0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_load_without_pickle_and_keep_their_digest(tmp_path, suffix: str) -> None:
    source = create_backbone("test_vit", weights=None, image_size=None, seed=5)
    path = tmp_path / f"weights{suffix}"
    state = frozen_tensors(source.vit) | {"head.weight": torch.zeros(10, source.vit.embed_dim)}
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        save_file(state, path)
    loaded = create_backbone("test_vit", weights=str(path), image_size=64, seed=6)
    assert loaded.digest == source.digest
    assert loaded.num_tokens != source.num_tokens


def test_each_kind_of_invalid_weights_is_refused(tmp_path) -> None:
    state = frozen_tensors(timm.create_model("test_vit", num_classes=0))

    def refuse(content: dict[str, torch.Tensor], match: str) -> None:
        save_file(content, tmp_path / "w.safetensors")
        with pytest.raises(InputRefusedError, match=match):
            create_backbone("test_vit", weights=str(tmp_path / "w.safetensors"), image_size=None, seed=0)

    refuse({k: v for k, v in state.items() if k != "norm.weight"}, "lacks norm.weight")
    refuse(state | {"blocks.9.extra": torch.zeros(1)}, "unknown blocks.9.extra")
    refuse(state | {"norm.weight": torch.zeros(3)}, "norm.weight is")
    refuse(state | {"norm.weight": torch.full_like(state["norm.weight"], torch.nan)}, "NaN or infinity")
    (tmp_path / "w.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    with pytest.raises(InputRefusedError, match="cannot be read"):
        create_backbone("test_vit", weights=str(tmp_path / "w.safetensors"), image_size=None, seed=0)


class _Bomb:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys) -> None:
    torch.save({"state_dict": _Bomb()}, tmp_path / "w.pth")
    with pytest.raises(InputRefusedError, match="safetensors"):
        create_backbone("test_vit", weights=str(tmp_path / "w.pth"), image_size=None, seed=0)
    assert "executed" not in capsys.readouterr().out


def test_an_image_size_that_patches_do_not_divide_is_refused_with_the_nearest_sizes() -> None:
    with pytest.raises(InputRefusedError, match="use 96 or 112"):
        create_backbone("test_vit", weights=None, image_size=100, seed=0)
