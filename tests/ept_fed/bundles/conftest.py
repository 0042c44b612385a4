"""Fixtures: a finished run of a micro federation, its backbone's weights, and its test images as files."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from ept_fed.bundles.bundle import DESCRIPTION, SIGNATURE, Bundle
from ept_fed.bundles.export import prepare_bundle
from ept_fed.config.experiment import Experiment
from ept_fed.models import create_backbone, frozen_tensors
from ept_fed.pki.signing import sign
from ept_fed.progress import Silent
from ept_fed.seeds import derive_seed
from ept_fed.storage.canonical_json import serialize_canonical
from simulations.engine.simulate import simulate
from simulations.engine.virtual_sites import prepare_federation
from tests.built_once import BuildOnce
from tests.conftest import MICRO_RUN, leave_charts_out
from tests.site_models import perturb, prefix, rewrite_model, site_tensors

SITE = "site-1"
# Three models of one site, and the shares of two of them.
MEMBERS = ("federated", "local", "third")
SHARES = {"federated": 0.6, "local": 0.4}
SMALL = (*MICRO_RUN, "data.phantom_sites=2", "federation.rounds=1", "evaluation.baselines=[]")


@dataclass(frozen=True)
class FinishedRun:
    folder: Path
    weights: Path
    images: Path
    bundle: Path
    key: Path


class MemberModels:
    """A copy of a run whose first site can leave a model with any members, and the tensors of three models."""

    def __init__(self, run: FinishedRun, home: Path) -> None:
        self.weights, self.images = str(run.weights), run.images
        self.folder = Path(shutil.copytree(run.folder, home / "run"))
        shutil.rmtree(self.folder / "sites" / SITE / "bundle")
        own = site_tensors(self.folder, SITE)
        self.tensors = {name: perturb(own, seed) if seed else own for seed, name in enumerate(MEMBERS)}

    def bundle(self, tensors: Mapping[str, np.ndarray], **about: Any) -> Bundle:
        """Return the bundle that an export of these tensors makes, in memory."""
        rewrite_model(self.folder, SITE, tensors, **about)
        return prepare_bundle(self.folder, SITE).bundle

    def single(self, member: str, **about: Any) -> Bundle:
        return self.bundle(self.tensors[member], members=None, **about)

    def summed(self, shares: Mapping[str, float], **about: Any) -> Bundle:
        return self.bundle(prefix({name: self.tensors[name] for name in shares}), members=dict(shares), **about)


def normalise(weights: Mapping[str, float]) -> dict[str, float]:
    """Return shares that sum to 1."""
    return {name: weight / math.fsum(weights.values()) for name, weight in weights.items()}


@st.composite
def any_shares(draw: st.DrawFn) -> dict[str, float]:
    """Draw two or three of the members in any order, with their shares."""
    number = draw(st.integers(2, len(MEMBERS)))
    return normalise({name: draw(st.floats(0.01, 1.0)) for name in draw(st.permutations(MEMBERS))[:number]})


def export_first(home: Path, experiment: Experiment) -> None:
    """Export the bundle of the first site of the run in `home`, and write its backbone and its test images."""
    federation = prepare_federation(experiment)
    # The digest covers the weights as drawn, before the position embedding is resized to image_size.
    drawn = create_backbone("test_vit", weights=None, image_size=None, seed=derive_seed(0, "backbone"))
    save_file(frozen_tensors(drawn.vit), home / "backbone.safetensors")
    test = federation.data.sites[SITE].test
    for record, pixels in zip(test.records, test._images, strict=True):
        path = home / "images" / f"{record.image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    prepare_bundle(home / "run", SITE).write()


def find_exported(home: Path) -> FinishedRun:
    folder = home / "run" / "sites" / SITE
    weights, images = home / "backbone.safetensors", home / "images"
    return FinishedRun(home / "run", weights, images, folder / "bundle", folder / "signing-key.pem")


@pytest.fixture(scope="session")
def finished(build_once: BuildOnce, micro_run: Path, shared_micro: Callable[..., Experiment]) -> FinishedRun:
    """Return `micro_run` with the bundle of its first site, for reading only."""

    def build(home: Path) -> None:
        shutil.copytree(micro_run, home / "run")
        export_first(home, shared_micro(*MICRO_RUN))

    return find_exported(build_once("bundle", build))


@pytest.fixture(scope="session")
def make_run(build_once: BuildOnce, shared_micro: Callable[..., Experiment]) -> Callable[..., FinishedRun]:
    """Return a function that simulates one round of two sites with overrides, and exports the first site's bundle."""

    def make(name: str, *overrides: str) -> FinishedRun:
        def build(home: Path) -> None:
            experiment = shared_micro(*SMALL, *overrides)
            with pytest.MonkeyPatch.context() as patch:
                leave_charts_out(patch)
                simulate(experiment, home / "run", Silent())
            export_first(home, experiment)

        return find_exported(build_once(f"bundle-{name}", build))

    return make


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


@pytest.fixture(scope="module")
def members(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> MemberModels:
    return MemberModels(finished, tmp_path_factory.mktemp("members"))
