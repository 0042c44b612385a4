"""Shared fixtures: the settings of a federation that runs in a second or two, and one finished run of it."""

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml

from client.site.site import Site
from ept_fed.config.experiment import Experiment
from ept_fed.data.sources.phantoms import PhantomImages
from ept_fed.progress import Silent
from ept_fed.run_plan.plan import Plan
from ept_fed.validation.load_experiment import load_experiment
from simulations.engine.simulate import simulate
from simulations.engine.virtual_sites import prepare_federation

if TYPE_CHECKING:
    # pytest imports this module itself, as a plugin.
    from tests.built_once import BuildOnce

pytest_plugins = ("tests.built_once", "tests.effort", "tests.needs", "tests.tiers")

MICRO: dict[str, Any] = {
    "name": "micro",
    "data": {
        "source": "phantoms",
        "phantom_sites": 3,
        "patients_per_class": 8,
        "shots": 2,
        "validation_shots": 2,
        "validation_fraction": 0.2,
    },
    "model": {
        "backbone": "test_vit",
        "image_size": 64,
        "prompt_length": 3,
        "prompt_layers": "deep",
        "tokens": 0,
        "initial_sink": None,
    },
    "training": {"batch_size": 4, "epochs": 1, "head": "trained", "token_lr": 0.003, "head_lr": 0.002},
    # The last round and the federated model, so that a test knows which prompts a run leaves.
    "federation": {"rounds": 2, "select": "last"},
    "personalisation": {"choose": False},
}
# The settings of `micro_run`: with a token, its prompts have both kinds of tensor.
MICRO_RUN = ("model.tokens=1",)


draw_phantom = PhantomImages.read
_drawn: dict[tuple[int, int, str], np.ndarray] = {}


def _draw_once(images: PhantomImages, image: str) -> np.ndarray:
    key = (images._seed, images._size, image)
    if key not in _drawn:
        _drawn[key] = draw_phantom(images, image)
    return _drawn[key].copy()


def pytest_sessionstart() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave modules and collected tests out of the garbage collections, each of which would scan them all."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _phantoms_once() -> Iterator[None]:
    """Draw each image once: drawing takes most of a federation's start, and depends on seed, size and name only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhantomImages, "read", _draw_once)
        yield


def leave_charts_out(patch: pytest.MonkeyPatch) -> None:
    """Leave the charts out of a run: drawing takes longer than a micro run, and their own tests cover them."""
    for chart in ("draw_confusion", "draw_learning", "draw_reliability", "draw_roc"):
        patch.setattr(f"ept_fed.reports.pages.html.{chart}", lambda *_arguments, **_options: "")
    patch.setattr("ept_fed.reports.charts.partition.draw_partition", lambda _rows: b"")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: reductions keep their order, and micro models do not wait at torch's thread barriers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def micro_file(tmp_path: Path) -> Path:
    path = tmp_path / "micro.yaml"
    path.write_text(yaml.safe_dump(MICRO))
    return path


@pytest.fixture
def micro(micro_file: Path) -> Callable[..., Experiment]:
    """Return a micro experiment with `key.path=value` overrides."""

    def build(*overrides: str) -> Experiment:
        return load_experiment(micro_file, overrides)

    return build


@pytest.fixture(scope="session")
def shared_micro(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Experiment]:
    """Return what `micro` returns, for fixtures that several tests share."""
    path = tmp_path_factory.mktemp("settings") / "micro.yaml"
    path.write_text(yaml.safe_dump(MICRO))
    return lambda *overrides: load_experiment(path, overrides)


@pytest.fixture(scope="session")
def micro_run(build_once: "BuildOnce", shared_micro: Callable[..., Experiment]) -> Path:
    """Return the folder of a finished run of `MICRO` with `MICRO_RUN` and all charts, for reading only."""
    return build_once("micro-run", lambda folder: simulate(shared_micro(*MICRO_RUN), folder / "run", Silent())) / "run"


@pytest.fixture
def micro_run_copy(micro_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run, for a test to change."""
    return Path(shutil.copytree(micro_run, tmp_path / "micro-run"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_charts_out(monkeypatch)


@pytest.fixture
def site_of(micro: Callable[..., Experiment]) -> Callable[..., tuple[Plan, Site]]:
    """Return the plan and the first of two sites of a micro experiment with overrides."""

    def build(*overrides: str) -> tuple[Plan, Site]:
        federation = prepare_federation(micro("model.device=cpu", "data.phantom_sites=2", *overrides))
        return federation.plan(), federation.create_site(federation.data.sites["site-1"])

    return build
