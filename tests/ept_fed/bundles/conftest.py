"""Fixtures: a finished run of a micro federation, its backbone's weights, and its test images as files."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image
from safetensors.torch import save_file

from ept_fed.bundles.bundle import DESCRIPTION, SIGNATURE
from ept_fed.bundles.export import prepare_bundle
from ept_fed.models import create_backbone, frozen_tensors
from ept_fed.pki.signing import sign
from ept_fed.progress import Silent
from ept_fed.seeds import derive_seed
from ept_fed.storage.canonical_json import serialize_canonical
from ept_fed.validation.load_experiment import load_experiment
from simulations.engine.simulate import simulate
from simulations.engine.virtual_sites import prepare_federation

SITE = "site-1"
SETTINGS: dict[str, Any] = {
    "name": "micro",
    "data": {
        "source": "phantoms",
        "phantom_sites": 2,
        "patients_per_class": 8,
        "shots": 2,
        "validation_shots": 2,
        "validation_fraction": 0.2,
    },
    "model": {"backbone": "test_vit", "image_size": 64, "prompt_length": 3, "tokens": 1},
    "training": {"batch_size": 4, "head_lr": 0.02},
    "federation": {"rounds": 2},
    "evaluation": {"baselines": []},
}


@dataclass(frozen=True)
class FinishedRun:
    folder: Path
    weights: Path
    images: Path
    bundle: Path
    key: Path


@pytest.fixture(scope="package")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FinishedRun]:
    """Return a function that simulates a run with overrides and exports the first site's bundle."""

    def make(*overrides: str) -> FinishedRun:
        home = tmp_path_factory.mktemp("finished")
        (home / "micro.yaml").write_text(yaml.safe_dump(SETTINGS))
        experiment = load_experiment(home / "micro.yaml", overrides)
        simulate(experiment, home / "run", Silent())
        federation = prepare_federation(experiment)
        # The digest covers the weights as drawn, before the position embedding is resized to image_size.
        drawn = create_backbone("test_vit", weights=None, image_size=None, seed=derive_seed(0, "backbone"))
        save_file(frozen_tensors(drawn.vit), home / "backbone.safetensors")
        test = federation.data.sites[SITE].test
        for record, pixels in zip(test.records, test._images, strict=True):
            path = home / "images" / f"{record.image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
        prepared = prepare_bundle(home / "run", SITE)
        prepared.write()
        return FinishedRun(home / "run", home / "backbone.safetensors", home / "images", prepared.folder, prepared.key)

    return make


@pytest.fixture(scope="package")
def finished(make_run: Callable[..., FinishedRun]) -> FinishedRun:
    return make_run()


@pytest.fixture
def bundle_copy(finished: FinishedRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.bundle, tmp_path / "bundle"))


@pytest.fixture
def resign(bundle_copy: Path) -> Callable[..., Path]:
    """Return a function that changes bundle.json and signs the result validly with a new key."""

    def apply(**changes: Any) -> Path:
        document = json.loads((bundle_copy / DESCRIPTION).read_text()) | changes
        content = serialize_canonical(document)
        (bundle_copy / DESCRIPTION).write_bytes(content)
        (bundle_copy / SIGNATURE).write_bytes(sign(content, ec.generate_private_key(ec.SECP384R1())))
        return bundle_copy

    return apply
