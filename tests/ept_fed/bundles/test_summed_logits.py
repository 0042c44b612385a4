"""The model of a bundle with members: its logits are the weighted sum of the logits of the members."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from ept_fed.bundles import model as model_module
from ept_fed.bundles.bundle import Bundle, read_bundle
from ept_fed.bundles.deploy import to_onnx, to_torchscript
from ept_fed.bundles.description import serialize_description
from ept_fed.bundles.export import prepare_bundle
from ept_fed.bundles.find_images import find_images
from ept_fed.bundles.model import CalibratedModel, SummedLogits, load_model
from ept_fed.bundles.predict import PREDICTED, predict_images
from ept_fed.models import PromptedViT, create_backbone
from ept_fed.pki.signing import public_key_path, read_public_key
from tests.effort import examples
from tests.ept_fed.bundles.conftest import SHARES, SITE, FinishedRun, MemberModels, any_shares
from tests.site_models import prefix, rewrite_model

# The overrides of a run; None is the run that other tests use.
PAYLOADS: dict[str, tuple[str, ...] | None] = {
    "folded": None,
    "multiply_concat": ("federation.payload=raw", "model.embedding=multiply_concat"),
}


def load(models: MemberModels, bundle: Bundle) -> CalibratedModel:
    return load_model(bundle, weights=models.weights, device="cpu")


@pytest.fixture(scope="module", params=PAYLOADS)
def any_members(
    request: pytest.FixtureRequest,
    finished: FinishedRun,
    make_run: Callable[..., FinishedRun],
    tmp_path_factory: pytest.TempPathFactory,
) -> MemberModels:
    overrides = PAYLOADS[request.param]
    run = finished if overrides is None else make_run(request.param, *overrides)
    return MemberModels(run, tmp_path_factory.mktemp("members"))


def pixels(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, 64, 64), generator=torch.Generator().manual_seed(seed)).float()


@torch.no_grad()
def raw_logits(members: MemberModels, member: str, images: torch.Tensor) -> np.ndarray:
    """Return the logits of one model before its temperature, from its own bundle, in float64."""
    bundle = members.single(member)
    logits, _ = load(members, bundle)(images)
    return logits.double().numpy() * bundle.description.temperature


@examples(6)
@given(
    shares=any_shares(),
    temperature=st.floats(0.2, 20.0),
    task=st.sampled_from(["single_label", "multi_label"]),
    seed=st.integers(0, 1000),
)
def test_the_probabilities_are_those_of_the_summed_logits_of_single_bundles(
    any_members: MemberModels, shares: dict[str, float], temperature: float, task: str, seed: int
) -> None:
    images = pixels(2, seed)
    summed = sum(share * raw_logits(any_members, name, images) for name, share in shares.items()) / temperature
    model = load(any_members, any_members.summed(shares, temperature=temperature, task=task))
    with torch.no_grad():
        logits, probabilities = model(images)
    expected = expit(summed) if task == "multi_label" else softmax(summed, axis=1)
    np.testing.assert_allclose(logits, summed, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("layers", [(0, 1, 2, 3, 4, 5), (2, 4), (5,)])
def test_members_share_the_backbone_and_what_lies_below_their_first_prompt(layers: tuple[int, ...]) -> None:
    backbone = create_backbone("test_vit", weights=None, image_size=64, seed=0)
    models = [
        PromptedViT(backbone, num_classes=3, prompt_layers=layers, prompt_length=1, tokens=1, seed=seed)
        for seed in (1, 2)
    ]
    summed = SummedLogits(models, (0.25, 0.75)).eval()
    images = pixels(2)
    with torch.no_grad():
        expected = 0.25 * models[0](images) + 0.75 * models[1](images)
        torch.testing.assert_close(summed(images), expected, rtol=0, atol=1e-6)
    own = sum(p.numel() for model in models for p in (*model.method_tensors().values(), *model.head.parameters()))
    assert sum(p.numel() for p in summed.parameters()) == own + sum(p.numel() for p in backbone.vit.parameters())


def test_models_of_two_backbones_are_not_summed() -> None:
    models = [
        PromptedViT.create("test_vit", num_classes=3, prompt_length=1, image_size=64, prompt_layers=(0,))
        for _ in range(2)
    ]
    with pytest.raises(ValueError, match="differ in their backbone"):
        SummedLogits(models, (0.5, 0.5))
    with pytest.raises(ValueError, match="2 models have 1 shares"):
        SummedLogits(models, (1.0,))


def test_the_backbone_is_loaded_once_for_all_members(members: MemberModels, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def create(*arguments: Any, **options: Any) -> Any:
        loaded.append(create_backbone(*arguments, **options))
        return loaded[-1]

    monkeypatch.setattr(model_module, "create_backbone", create)
    load(members, members.summed(SHARES))
    assert len(loaded) == 1


def test_an_exported_model_of_two_members_is_read_and_predicts_the_summed_logits(
    members: MemberModels, tmp_path: Path
) -> None:
    singles = {name: members.single(name, temperature=1.0) for name in SHARES}
    rewrite_model(
        members.folder,
        SITE,
        prefix({name: members.tensors[name] for name in SHARES}),
        members=SHARES,
        temperature=1.75,
    )
    prepared = prepare_bundle(members.folder, SITE, out=tmp_path / "bundle")
    prepared.write()
    bundle = read_bundle(tmp_path / "bundle", read_public_key(public_key_path(prepared.key)))
    assert bundle.description.members == SHARES
    assert bundle.description.schema_version == 2
    assert set(bundle.tensors) == {f"{member}/{own}" for member in SHARES for own in members.tensors[member]}

    images = find_images([members.images])[:6]
    rows = predict_images(load(members, bundle), bundle.description, images)
    assert [row.status for row in rows] == [PREDICTED] * 6
    log = {
        name: np.log([r.probabilities for r in predict_images(load(members, single), single.description, images)])
        for name, single in singles.items()
    }
    # The logarithm of a softmax is the logits up to a constant per image, which the softmax of the sum removes.
    expected = softmax(sum(SHARES[name] * log[name] for name in SHARES) / 1.75, axis=1)
    np.testing.assert_allclose([row.probabilities for row in rows], expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_torchscript_of_two_members_matches_the_model_and_holds_the_backbone_once(any_members: MemberModels) -> None:
    bundle = any_members.summed(SHARES)
    model = load(any_members, bundle)
    content = to_torchscript(model, bundle.description)
    extra = {"bundle.json": ""}
    loaded = torch.jit.load(io.BytesIO(content), _extra_files=extra)
    assert not model.model.portable
    for batch in (1, 3):
        with torch.no_grad():
            for have, want in zip(loaded(pixels(batch)), model(pixels(batch)), strict=True):
                torch.testing.assert_close(have, want, rtol=0, atol=1e-5)
    assert extra["bundle.json"] == serialize_description(bundle.description)
    single = any_members.single("local")
    only = to_torchscript(load(any_members, single), single.description)
    weights = 4 * sum(p.numel() for p in model.model.backbone.vit.parameters())
    assert len(content) < len(only) + weights / 2


@pytest.mark.integration
def test_onnx_of_two_members_matches_the_model(members: MemberModels) -> None:
    import onnxruntime

    bundle = members.summed(SHARES)
    model = load(members, bundle)
    session = onnxruntime.InferenceSession(to_onnx(model, bundle.description))
    for batch in (1, 3):
        with torch.no_grad():
            wanted = model(pixels(batch))
        for have, want in zip(session.run(None, {"pixels": pixels(batch).numpy()}), wanted, strict=True):
            np.testing.assert_allclose(have, want.numpy(), rtol=0, atol=1e-5)
