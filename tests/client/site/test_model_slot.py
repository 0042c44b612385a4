"""The model in memory: lent to one holder at a time, with the holder's own tensors."""

from collections.abc import Callable

import numpy as np
import pytest

from client.site.state_store import SiteState, capture_model
from ept_fed.config.experiment import Experiment
from ept_fed.protocol.layout import PayloadMismatchError
from simulations.engine.virtual_sites import prepare_federation


def test_the_model_is_lent_to_one_holder_at_a_time(micro: Callable[..., Experiment]) -> None:
    slot = prepare_federation(micro()).slot
    with slot.hold("north", None):
        with (
            pytest.raises(RuntimeError, match="south cannot use the model while north holds it"),
            slot.hold("south", None),
        ):
            pass
        with pytest.raises(RuntimeError, match="while north holds it"), slot.hold("north", None):
            pass
    with slot.hold("south", None):
        pass


def test_two_sites_cannot_hold_the_model_together_and_the_refused_one_changes_nothing(
    micro: Callable[..., Experiment],
) -> None:
    experiment = micro("model.tokens=1")
    federation = prepare_federation(experiment)
    trained, fresh = (federation.create_site(federation.data.sites[name]) for name in ("site-1", "site-2"))
    trained.fit(experiment.training, 1, 1)
    with trained.hold() as held:
        before = capture_model(held.model)
        for payload in (None, federation.plan().initial):
            with (
                pytest.raises(RuntimeError, match="site-2 cannot use the model while site-1 holds it"),
                fresh.hold(payload),
            ):
                pass
        after = capture_model(held.model)
    assert all(np.array_equal(after[name], tensor) for name, tensor in before.items())


def test_a_state_or_payload_that_cannot_be_loaded_leaves_the_model_free(micro: Callable[..., Experiment]) -> None:
    federation = prepare_federation(micro())
    site = federation.create_site(federation.data.sites["site-1"])
    foreign = SiteState(1, 1, {"model/other": np.zeros(2, np.float32)}, "")
    with pytest.raises(ValueError, match="this model has"), federation.slot.hold("north", foreign):
        pass
    with pytest.raises(PayloadMismatchError), site.hold(np.zeros(3, np.float32)):
        pass
    with site.hold() as held:
        tensors = capture_model(held.model)
    assert all(np.array_equal(tensors[name], tensor) for name, tensor in federation.slot.start.items())


def test_each_holder_gets_its_own_tensors_even_after_a_failure_of_the_one_before(
    micro: Callable[..., Experiment],
) -> None:
    experiment = micro("model.tokens=1")
    federation = prepare_federation(experiment)
    trained, fresh = (federation.create_site(federation.data.sites[name]) for name in ("site-1", "site-2"))
    trained.fit(experiment.training, 1, 1)
    with pytest.raises(ValueError, match="halfway"), trained.hold() as held:
        held.model.head.weight.data.fill_(9.0)
        raise ValueError("halfway")
    state = trained.state
    assert state is not None
    for site, own in ((fresh, federation.slot.start), (trained, state.tensors)):
        with site.hold() as held:
            tensors = capture_model(held.model)
        assert all(np.array_equal(values, own[name]) for name, values in tensors.items())
