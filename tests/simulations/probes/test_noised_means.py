"""The probe finds members in sums without noise, and fewer with more noise; other heads do not depend on it."""

from collections.abc import Callable

import pytest

from ept_fed.config.experiment import Experiment
from simulations.engine.virtual_sites import prepare_federation
from simulations.probes.noised_means import assess, read_features


def test_noise_hides_members(micro: Callable[..., Experiment]) -> None:
    federation = prepare_federation(
        micro("data.patients_per_class=24", "data.test_fraction=0.6", "data.shots=2", "training.precision=float32")
    )
    kept: dict[str, object] = {}
    features = read_features(federation, kept)  # type: ignore[arg-type]
    assert len(kept) == sum(len(part) for data in federation.data.sites.values() for part in (data.train, data.test))
    plain, little, much = (assess(features, epsilon, 16, 0) for epsilon in (0.0, 50.0, 0.5))
    assert plain[5] > 0.75
    assert plain[5] > little[5] > much[5]
    assert abs(much[5] - 0.5) < 0.12
    # The other heads have no noise.
    assert plain[:3] == pytest.approx(much[:3])
