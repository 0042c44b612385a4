import csv
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ept_fed.bundles.bundle import read_bundle
from ept_fed.bundles.deploy import check_targets, to_onnx, to_torchscript
from ept_fed.bundles.find_images import find_images
from ept_fed.bundles.model import CalibratedModel, load_model
from ept_fed.bundles.predict import predict_images
from ept_fed.errors import InputRefusedError
from ept_fed.evaluation.calibration import apply_temperature
from ept_fed.models import create_backbone, frozen_tensors
from ept_fed.models.demo_backbone import DEMO_BACKBONE

# The overrides of a run; None is the run that other tests use.
PAYLOADS: dict[str, tuple[str, ...] | None] = {
    "folded": None,
    "raw": ("federation.payload=raw",),
    "multiply_concat": ("federation.payload=raw", "model.embedding=multiply_concat"),
    "add": ("federation.payload=raw", "model.embedding=add", "model.prompt_length=18"),
    "shallow": ("model.prompt_layers=shallow", "model.tokens=0"),
}


@pytest.fixture(scope="module", params=PAYLOADS)
def any_run(request: pytest.FixtureRequest, finished: Any, make_run: Callable[..., Any]) -> Any:
    overrides = PAYLOADS[request.param]
    return finished if overrides is None else make_run(request.param, *overrides)


def site_probabilities(run: Any) -> dict[str, list[float]]:
    with (run.folder / "sites" / "site-1" / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["setting"] == "federated" and row["split"] == "test"]
    return {row["image"]: [float(row[key]) for key in row if key.startswith("p[")] for row in rows}


def pixels(batch: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, 64, 64), generator=torch.Generator().manual_seed(batch)).float()


def test_a_bundle_predicts_the_same_as_the_site(any_run: Any) -> None:
    bundle = read_bundle(any_run.bundle)
    model = load_model(bundle, weights=str(any_run.weights))
    own = site_probabilities(any_run)
    images = find_images([any_run.images])
    names = [image.path.relative_to(any_run.images).with_suffix("").as_posix() for image in images]
    assert sorted(names) == sorted(own)
    calibrated = np.array([row.probabilities for row in predict_images(model, bundle.description, images)])
    model.temperature = 1.0
    plain = np.array([row.probabilities for row in predict_images(model, bundle.description, images)])
    expected = np.array([own[name] for name in names])
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    task, temperature = bundle.description.task, bundle.description.temperature
    np.testing.assert_allclose(calibrated, apply_temperature(expected, temperature, task), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_torchscript_matches_the_model_for_any_batch_size(any_run: Any) -> None:
    bundle = read_bundle(any_run.bundle)
    model = load_model(bundle, weights=str(any_run.weights), device="cpu")
    extra = {"bundle.json": ""}
    loaded = torch.jit.load(io.BytesIO(to_torchscript(model, bundle.description)), _extra_files=extra)
    assert not model.model.portable
    for batch in (1, 3):
        with torch.no_grad():
            for have, want in zip(loaded(pixels(batch)), model(pixels(batch)), strict=True):
                torch.testing.assert_close(have, want, rtol=0, atol=1e-5)
    assert extra["bundle.json"] == (any_run.bundle / "bundle.json").read_bytes()


@pytest.mark.integration
def test_onnx_matches_the_model_for_any_batch_size(any_run: Any) -> None:
    import onnxruntime

    bundle = read_bundle(any_run.bundle)
    model = load_model(bundle, weights=str(any_run.weights), device="cpu")
    session = onnxruntime.InferenceSession(to_onnx(model, bundle.description))
    assert (
        session.get_modelmeta().custom_metadata_map["bundle.json"].encode()
        == (any_run.bundle / "bundle.json").read_bytes()
    )
    for batch in (1, 3):
        with torch.no_grad():
            wanted = model(pixels(batch))
        for have, want in zip(session.run(None, {"pixels": pixels(batch).numpy()}), wanted, strict=True):
            np.testing.assert_allclose(have, want.numpy(), rtol=0, atol=1e-5)


def test_onnx_without_its_packages_is_refused_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    (problem,) = check_targets(None, tmp_path / "model.onnx")
    assert problem.fix == "needs what is not installed: onnx and onnxscript; run: pip install 'ept-fed[onnx]'"


def test_existing_export_targets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"keep me")
    (problem,) = check_targets(tmp_path / "model.pt", None)
    assert (problem.field, "already exists" in problem.fix) == ("--torchscript", True)


def test_another_backbone_is_refused_with_both_digests(finished: Any, tmp_path: Path) -> None:
    bundle = read_bundle(finished.bundle)
    other = create_backbone("test_vit", weights=None, image_size=None, seed=99)
    save_file(frozen_tensors(other.vit), tmp_path / "other.safetensors")
    with pytest.raises(InputRefusedError) as refusal:
        load_model(bundle, weights=str(tmp_path / "other.safetensors"))
    assert other.digest in str(refusal.value)
    assert bundle.description.backbone.digest in str(refusal.value)


def test_one_changed_weight_makes_another_backbone(finished: Any, tmp_path: Path) -> None:
    content = bytearray(finished.weights.read_bytes())
    content[-2] ^= 1
    (tmp_path / "changed.safetensors").write_bytes(content)
    with pytest.raises(InputRefusedError, match="the prompts were tuned in"):
        load_model(read_bundle(finished.bundle), weights=str(tmp_path / "changed.safetensors"))


def test_a_backbone_is_never_downloaded_or_guessed(finished: Any, tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="--weights"):
        load_model(read_bundle(finished.bundle), weights=None)
    with pytest.raises(InputRefusedError, match="weights"):
        load_model(read_bundle(finished.bundle), weights=str(tmp_path / "missing.safetensors"))


def test_cuda_is_refused_on_a_machine_without_it(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputRefusedError, match="--device"):
        load_model(read_bundle(finished.bundle), weights=str(finished.weights), device="cuda")


@pytest.mark.parametrize("changes", [{"prompt_layers": [0, 1, 2, 3, 4, 99]}, {"embedding": "add"}])
def test_a_signed_bundle_that_does_not_fit_its_backbone_is_refused(
    finished: Any, resign: Callable[..., Path], changes: dict[str, Any]
) -> None:
    with pytest.raises(InputRefusedError):
        load_model(read_bundle(resign(**changes)), weights=str(finished.weights))


def test_another_image_size_does_not_fit_the_sinks(finished: Any, resign: Callable[..., Path]) -> None:
    bundle = read_bundle(finished.bundle)
    larger = bundle.description.input.model_dump(mode="json") | {"size": 96}
    with pytest.raises(InputRefusedError, match="is inconsistent"):
        load_model(read_bundle(resign(input=larger)), weights=str(finished.weights))


def test_multi_label_probabilities_are_independent_sigmoids(finished: Any, resign: Callable[..., Path]) -> None:
    bundle = read_bundle(resign(task="multi_label", temperature=2.0))
    model = load_model(bundle, weights=str(finished.weights))
    with torch.no_grad():
        logits, probabilities = model(pixels(2))
    torch.testing.assert_close(probabilities, logits.sigmoid())
    (row,) = predict_images(model, bundle.description, find_images([finished.images])[:1])
    chosen = tuple(name for name, p in zip(bundle.description.classes, row.probabilities, strict=True) if p >= 0.5)
    assert row.predicted == chosen


@pytest.mark.integration
def test_the_demo_backbone_needs_no_weights_file(make_run: Callable[..., Any]) -> None:
    run = make_run("demo", f"model.backbone={DEMO_BACKBONE}", "model.weights=pretrained")
    bundle = read_bundle(run.bundle)
    assert isinstance(load_model(bundle, weights=None), CalibratedModel)
    assert bundle.description.backbone.name == DEMO_BACKBONE
