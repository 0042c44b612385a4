"""The model in memory: lent to one holder at a time, with the holder's own tensors."""

from collections.abc import Callable

import numpy as np
import pytest

from client.site.state_store import capture_model
from ept_fed.config.experiment import Experiment
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
