"""Tests of a site's saved state: every kind of store behaves the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client.site.flower_state_store import ContextStates
from client.site.state_store import (
    KEPT_STATES,
    SiteState,
    StateFolder,
    StateLostError,
    StateMemory,
    StateStore,
    capture_model,
    capture_optimizer,
    restore_model,
    restore_optimizer,
)
from ept_fed.config.experiment import Experiment, TrainingSettings
from ept_fed.models import PromptedViT
from ept_fed.storage.checkpoint_file import DamagedCheckpointError
from ept_fed.training.optimizer import build_optimizer
from simulations.engine.virtual_sites import prepare_federation

STORES: dict[str, Callable[[Path], StateStore]] = {
    "memory": lambda _folder: StateMemory(),
    "folder": lambda folder: StateFolder(folder, run="r", site="a"),
    "context": lambda _folder: ContextStates(RecordDict()),
}


@pytest.fixture(params=STORES.values(), ids=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StateStore:
    return request.param(tmp_path)


def state(round_number: int, trained: int | None = None, best_round: int = 0) -> SiteState:
    tensors = {
        "model/prompts": np.full((2, 3), round_number, np.float32),
        "optimizer/0/step": np.array(7, np.float32),
    }
    return SiteState(round_number, trained or round_number, tensors, '{"epochs": 1}', best_round)


def test_a_new_store_has_no_state(store: StateStore) -> None:
    assert store.latest() is None
    assert store.latest(before=1) is None


def test_a_loaded_state_equals_the_saved_state(store: StateStore) -> None:
    store.save(state(4, trained=2))
    held = store.latest()
    assert held is not None
    assert (held.round, held.trained, held.settings) == (4, 2, '{"epochs": 1}')
    assert all(np.array_equal(held.tensors[name], tensor) for name, tensor in state(4).tensors.items())
    assert {name: tensor.dtype for name, tensor in held.tensors.items()} == {
        name: tensor.dtype for name, tensor in state(4).tensors.items()
    }


def test_a_repeated_round_starts_from_the_state_before_it(store: StateStore) -> None:
    for round_number in (1, 2, 3):
        store.save(state(round_number))
    before = store.latest(before=3)
    assert before is not None
    assert before.round == 2
    store.save(state(3))
    latest = store.latest()
    assert latest is not None
    assert latest.round == 3


def test_a_repeated_round_replaces_the_later_states(store: StateStore) -> None:
    for round_number in (1, 2, 3):
        store.save(state(round_number))
    store.save(state(2))
    assert store.latest(before=9).round == 2  # type: ignore[union-attr]


def test_the_last_states_are_kept_and_a_request_for_an_older_one_fails(store: StateStore) -> None:
    for round_number in range(1, 8):
        store.save(state(round_number))
    oldest = 8 - KEPT_STATES
    assert store.latest(before=oldest + 1).round == oldest  # type: ignore[union-attr]
    with pytest.raises(StateLostError, match=f"before round {oldest} is no longer kept"):
        store.latest(before=oldest)


def test_the_state_after_the_best_round_is_kept_however_old_it_is(store: StateStore) -> None:
    for round_number in range(1, 10):
        store.save(state(round_number, best_round=2 if round_number > 3 else 0))
    for kept in (2, 7, 8, 9):
        assert store.after(kept).round == kept  # type: ignore[union-attr]
    assert store.latest(before=8).round == 7  # type: ignore[union-attr]
    for lost in (2, 4, 7):
        with pytest.raises(StateLostError, match=f"before round {lost} is no longer kept"):
            store.latest(before=lost)
    for lost in (1, 3, 6):
        with pytest.raises(StateLostError, match="no longer kept"):
            store.after(lost)
    store.save(state(10, best_round=9))
    with pytest.raises(StateLostError):
        store.after(2)


def test_a_site_that_missed_the_best_round_keeps_its_state_from_before(store: StateStore) -> None:
    for trained, round_number in enumerate((1, 3, 6, 7, 8, 9), start=1):
        store.save(state(round_number, trained, best_round=4 if round_number > 5 else 0))
    assert store.after(4).round == 3  # type: ignore[union-attr]
    with pytest.raises(StateLostError):
        store.after(5)


def test_a_site_that_was_never_selected_before_has_no_earlier_state(store: StateStore) -> None:
    store.save(state(5, trained=1))
    assert store.latest(before=5) is None


def test_a_state_that_is_cut_altered_or_foreign_is_refused(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path, run="r", site="a")
    folder.save(state(1))
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:-3] + b"abc"):
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpointError, match=r"round-0001\.safetensors (is cut short|was altered)"):
            folder.latest()
    path.write_bytes(whole)
    for other in (StateFolder(tmp_path, run="r", site="b"), StateFolder(tmp_path, run="s", site="a")):
        with pytest.raises(DamagedCheckpointError, match="belongs elsewhere"):
            other.latest()


@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_every_flipped_byte_that_changes_the_state_is_detected(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped"
    folder = StateFolder(path, run="r", site="a")
    folder.save(state(1))
    (file,) = path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[position % len(content)] ^= flip
    file.write_bytes(content)
    try:
        held = folder.latest()
    except DamagedCheckpointError:
        return
    # Whitespace in the JSON header carries no meaning, so a flip there may stay undetected.
    assert held is not None
    assert np.array_equal(held.tensors["model/prompts"], state(1).tensors["model/prompts"])
    assert (held.round, held.trained, held.settings) == (1, 1, '{"epochs": 1}')


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_from_a_restored_state_equals_uninterrupted_training(optimizer: str) -> None:
    settings = TrainingSettings(optimizer=optimizer, prompt_lr=0.1)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def step(model: PromptedViT, built: torch.optim.Optimizer) -> None:
        built.zero_grad()
        model(images).square().mean().backward()
        built.step()

    def create() -> PromptedViT:
        return PromptedViT.create("test_vit", num_classes=3, prompt_length=2, tokens=1, image_size=64)

    model = create()
    built = build_optimizer(model, settings)
    step(model, built)
    kept = {**capture_model(model), **capture_optimizer(built)}
    step(model, built)
    resumed = create()
    restore_model(resumed, kept)
    rebuilt = build_optimizer(resumed, settings)
    restore_optimizer(rebuilt, kept)
    step(resumed, rebuilt)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(capture_model(model).values(), capture_model(resumed).values(), strict=True)
    )


def test_a_state_of_another_model_is_refused() -> None:
    model = PromptedViT.create("test_vit", num_classes=3, prompt_length=2, image_size=64)
    other = PromptedViT.create("test_vit", num_classes=4, prompt_length=2, image_size=64)
    with pytest.raises(ValueError, match="this model has"):
        restore_model(model, capture_model(other))


@pytest.mark.parametrize(
    "settings",
    [
        ("model.tokens=1",),
        ("training.optimizer=sgd", "training.head_lr=0.01"),
        ("training.optimizer_state=reset",),
        ("federation.payload=raw",),
        ("personalisation.ditto=0.1",),
    ],
    ids=lambda settings: settings[0],
)
def test_a_site_recreated_for_each_round_trains_bit_for_bit_the_same(
    micro: Callable[..., Experiment], settings: tuple[str, ...], tmp_path: Path
) -> None:
    federation = prepare_federation(micro(*settings))
    data, experiment = federation.data.sites["site-1"], federation.experiment
    awake = federation.create_site(data)
    stores = [create(tmp_path) for create in STORES.values()]
    for round_number in (1, 2, 3):
        woken = [federation.create_site(data, store) for store in stores]
        payload = awake.own_payload()
        for site in (awake, *woken):
            site.fit(experiment.training, round_number, 3, payload=payload)
        theirs = awake.state
        assert theirs is not None
        for site, store in zip(woken, stores, strict=True):
            assert site.own_payload().tobytes() == awake.own_payload().tobytes()
            mine = store.latest()
            assert mine is not None
            assert set(mine.tensors) == set(theirs.tensors)
            assert all(np.array_equal(mine.tensors[name], theirs.tensors[name]) for name in theirs.tensors)
