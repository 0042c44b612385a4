"""Tests of a site as a MONAI client algorithm."""

from collections.abc import Callable

import numpy as np
import pytest
from monai.fl.client.client_algo import ClientAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from client.site.monai_algo import EPTClientAlgo
from client.site.site import Site
from client.site.state_store import capture_model
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.protocol.layout import PayloadMismatchError
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation


@pytest.fixture
def federation(micro: Callable[..., Experiment]) -> VirtualFederation:
    return prepare_federation(micro("model.tokens=1"))


def make(federation: VirtualFederation, rounds: int = 2) -> tuple[EPTClientAlgo, Site]:
    site = federation.create_site(federation.data.sites["site-1"])
    return EPTClientAlgo(site, federation.experiment.training, rounds=rounds), site


def weights(federation: VirtualFederation) -> ExchangeObject:
    plan = federation.plan()
    return ExchangeObject(weights=plan.layout.unflatten(plan.initial))


def test_training_through_monai_equals_training_through_the_site(federation: VirtualFederation) -> None:
    algo, site = make(federation)
    assert isinstance(algo, ClientAlgo)
    algo.initialize({ExtraItems.CLIENT_NAME: "site-1"})
    algo.train(weights(federation))
    other = federation.create_site(federation.data.sites["site-1"])
    other.fit(federation.experiment.training, 1, 2, payload=federation.plan().initial)
    sent = algo.get_weights()
    assert set(sent.weights) == {"sinks", "tokens"}
    assert np.array_equal(site.layout.flatten(sent.weights), other.own_payload())


def test_evaluation_returns_metrics_and_trains_nothing(federation: VirtualFederation) -> None:
    algo, site = make(federation)
    algo.train(weights(federation))
    before = site.own_payload()
    with site.hold(federation.plan().initial) as held:
        model, adopted = held.model, capture_model(held.model)
        _, expected = held.assess(site.data.validation)
    metrics = algo.evaluate(weights(federation)).metrics
    assert "auc" in metrics
    assert metrics == pytest.approx(expected, nan_ok=True)
    # The model in memory keeps the tensors of its last holder.
    after = capture_model(model)
    assert all(np.array_equal(after[name], tensor) for name, tensor in adopted.items())
    assert np.array_equal(site.own_payload(), before)


def test_weights_that_do_not_fit_are_refused(federation: VirtualFederation) -> None:
    algo, _ = make(federation)
    for sent in ({}, {"backbone": np.zeros(3)}, {"sinks": np.zeros((1, 1)), "tokens": np.zeros((1, 1, 1))}):
        with pytest.raises(PayloadMismatchError):
            algo.train(ExchangeObject(weights=sent))


def test_another_client_and_a_round_too_many_are_refused(federation: VirtualFederation) -> None:
    algo, _ = make(federation, rounds=1)
    with pytest.raises(ValueError, match="site-1"):
        algo.initialize({ExtraItems.CLIENT_NAME: "site-2"})
    algo.train(weights(federation))
    with pytest.raises(RuntimeError, match="all 1 rounds"):
        algo.train(weights(federation))


def test_a_site_with_noise_or_secure_aggregation_is_refused(micro: Callable[..., Experiment]) -> None:
    noisy = micro("federation.site_privacy={noise: local, clip: 1, noise_multiplier: 1}")
    masked = micro("federation.secure_aggregation={}", "federation.norm_bound=null")
    for experiment, field in ((noisy, "site_privacy"), (masked, "secure_aggregation")):
        with pytest.raises(InputRefusedError, match=field):
            make(prepare_federation(experiment))
