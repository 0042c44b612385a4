"""Membership inference from prompts: no more than the initial prompts if untrained, much if images are memorised."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ept_fed.config.experiment import Experiment
from simulations.engine.virtual_sites import prepare_federation
from simulations.probes.membership import probe


def test_prompts_that_nothing_moved_tell_what_the_start_tells(micro: Callable[..., Experiment], tmp_path: Path) -> None:
    federation = prepare_federation(micro("training.head=fixed", "training.prompt_lr=0"))
    members, (own, average, change) = probe(federation, tmp_path)
    assert members == sum(len(site.train) for site in federation.data.sites.values())
    assert own.value == pytest.approx(average.value, abs=0.02)
    assert change.low <= 0.5 <= change.high


@pytest.mark.integration
def test_images_that_were_learned_by_heart_are_told_from_others(
    micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    learned = ("training.head_lr=0.1", "training.epochs=20", "data.phantom_sites=2")
    _, (own, *_) = probe(prepare_federation(micro(*learned)), tmp_path)
    assert own.low > 0.6
