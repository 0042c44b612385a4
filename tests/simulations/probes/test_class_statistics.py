"""Membership inference from class statistics: the score identifies an image that is the only one of its class."""

from collections.abc import Callable

import numpy as np
import pytest

from ept_fed.config.experiment import Experiment
from ept_fed.training.lda import measure_statistics
from simulations.engine.virtual_sites import prepare_federation
from simulations.probes.class_statistics import probe, score_closeness, score_leverage


def test_the_only_image_of_its_class_lies_where_the_mean_does() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(4, 16)), np.array([0, 1, 1, 1])
    statistics = measure_statistics(features, labels, classes=2)
    others = rng.normal(size=(50, 16))
    score = score_closeness(features[:1], labels[:1], statistics)[0]
    assert score == pytest.approx(1.0)
    assert (score_closeness(others, np.zeros(50, int), statistics) < score).all()


def test_moments_account_for_the_images_that_they_are_of_and_no_others() -> None:
    rng = np.random.default_rng(0)
    features, others = rng.normal(size=(8, 16)), rng.normal(size=(50, 16))
    statistics = measure_statistics(features, np.arange(8) % 2, classes=2)
    assert score_leverage(features, statistics).min() > score_leverage(others, statistics).max()


def test_a_line_tells_of_all_sites(micro: Callable[..., Experiment], capsys: pytest.CaptureFixture[str]) -> None:
    probe(prepare_federation(micro("training.head=lda", "federation.share=prompts+head")), 2)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.count("[") == 4
    assert line.startswith("| 2 |")
