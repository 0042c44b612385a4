"""The difference of two sums is a site's update if both runs trained to the same bits, and far from it otherwise."""

from collections.abc import Callable

from ept_fed.config.experiment import Experiment
from simulations.engine.virtual_sites import prepare_federation
from simulations.probes.two_sums import compare_sums


def test_only_equal_training_seeds_let_two_sums_tell_a_sites_update(micro: Callable[..., Experiment]) -> None:
    # Many steps over few images, so that their order matters.
    federation = prepare_federation(micro("federation.rounds=1", "training.epochs=3", "training.batch_size=2"))
    control, same_seed, other_seed = compare_sums(federation, "site-2")
    assert control[1] < 1e-5
    assert control[0] > 0.9999
    for cosine, error in (same_seed, other_seed):
        assert error > 0.2
        assert cosine < 0.98
