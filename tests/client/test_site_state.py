"""A site that is put away after every message and fetched back answers as one that never slept."""

from collections.abc import Callable

import numpy as np
import pytest

from client.site_state import SiteStateError, export_state, import_state
from ept_fed.config import Experiment
from simulations.virtual_sites import prepare_federation

Micro = Callable[..., Experiment]


@pytest.mark.parametrize(
    "settings",
    [
        ("model.tokens=1",),
        ("training.optimizer=sgd", "training.head_lr=0.01"),
        ("training.optimizer_state=reset",),
        ("federation.payload=raw",),
    ],
    ids=lambda settings: settings[0],
)
def test_training_goes_on_bit_for_bit(micro: Micro, settings: tuple[str, ...]) -> None:
    experiment = micro(*settings)
    federation = prepare_federation(experiment)
    data = federation.data.sites["site-1"]
    awake, arrays, made_with = federation.create_site(data), {}, ""
    for round_number in (1, 2, 3):
        site = federation.create_site(data)
        if arrays:
            import_state(site, arrays, made_with)
        payload = awake.export()
        for each in (awake, site):
            each.adopt(payload)
            each.fit(experiment.training, round_number, 3)
        arrays, made_with = export_state(site)
        assert site.export().tobytes() == awake.export().tobytes()
        mine, theirs = dict(site.model.named_parameters()), dict(awake.model.named_parameters())
        assert all(np.array_equal(mine[name].detach(), theirs[name].detach()) for name in theirs)


def test_an_untrained_sites_state_has_no_optimiser(micro: Micro) -> None:
    federation = prepare_federation(micro())
    site = federation.create_site(federation.data.sites["site-1"])
    arrays, made_with = export_state(site)
    assert made_with == ""
    trainable = {name for name, parameter in site.model.named_parameters() if parameter.requires_grad}
    assert set(arrays) == {f"model.{name}" for name in trainable}
    assert len(trainable) == 3


@pytest.mark.parametrize("settings", ["model.tokens=1", "model.prompt_length=5"])
def test_another_models_state_is_refused(micro: Micro, settings: str) -> None:
    states = []
    for experiment in (micro(), micro(settings)):
        federation = prepare_federation(experiment)
        site = federation.create_site(federation.data.sites["site-1"])
        states.append((site, export_state(site)))
    (first, _), (_, state) = states
    with pytest.raises(SiteStateError, match=r"prompts|tokens"):
        import_state(first, *state)
