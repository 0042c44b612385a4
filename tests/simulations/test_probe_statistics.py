"""What statistics tell of who was trained on: the score knows an image whose class has no other."""

from collections.abc import Callable

import numpy as np
import pytest

from ept_fed.config import Experiment
from ept_fed.training.discriminant import measure_statistics
from simulations.probe_statistics import probe, score_closeness
from simulations.virtual_sites import prepare_federation


def test_the_only_image_of_its_class_lies_where_the_mean_does() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(4, 16)), np.array([0, 1, 1, 1])
    statistics = measure_statistics(features, labels, classes=2)
    others = rng.normal(size=(50, 16))
    score = score_closeness(features[:1], labels[:1], statistics)[0]
    assert score == pytest.approx(1.0)
    assert (score_closeness(others, np.zeros(50, int), statistics) < score).all()


def test_a_line_tells_of_all_sites(micro: Callable[..., Experiment], capsys: pytest.CaptureFixture[str]) -> None:
    probe(prepare_federation(micro("training.head=discriminant", "federation.share=prompts+head")), 2)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.count("[") == 2
    assert line.startswith("| 2 |")
