"""Membership inference from class statistics: what the attacker has, and whom the scores find."""

from collections.abc import Callable

import numpy as np
import pytest

from ept_fed.config.experiment import Experiment
from ept_fed.training.lda import measure_statistics
from simulations.attacks.membership import choose_candidates
from simulations.engine.virtual_sites import prepare_federation
from simulations.probes.class_statistics import find_public, probe, score_leverage


def test_moments_account_for_the_images_that_they_are_of_and_no_others() -> None:
    rng = np.random.default_rng(0)
    features, others = rng.normal(size=(8, 16)), rng.normal(size=(50, 16))
    statistics = measure_statistics(features, np.arange(8) % 2, classes=2)
    assert score_leverage(features, statistics).min() > score_leverage(others, statistics).max()


def test_a_line_tells_of_all_sites_and_of_members_at_random(
    micro: Callable[..., Experiment], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("data.test_fraction=0.5", "data.patients_per_class=16")
    federation = prepare_federation(micro("training.head=lda", "federation.share=prompts+head", *more))
    known = find_public(federation)
    tested = {record.group for site in federation.data.sites.values() for record in site.test.records}
    assert len(known.groups) == len(tested) // 2
    assert known.groups < tested
    probe(federation, 2, known)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.count("[") == line.count("%") == 5
    assert line.startswith("| 2 | ")


def test_images_that_the_attacker_has_are_no_candidates(micro: Callable[..., Experiment]) -> None:
    federation = prepare_federation(micro("data.test_fraction=0.5", "data.patients_per_class=16"))
    everyone = choose_candidates(federation, "site-1", 0)
    others = {group for group, member in zip(everyone.groups, everyone.member, strict=True) if not member}
    known = set(sorted(others)[: len(others) // 2])
    fewer = choose_candidates(federation, "site-1", 0, known=known)
    assert not known & set(fewer.groups)
    assert 0 < fewer.member.sum() <= everyone.member.sum()
    assert fewer.member.sum() == (~fewer.member).sum()
