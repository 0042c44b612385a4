"""Prompts with each kind of head: all kinds are compared at every site, from the same initial values."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ept_fed.config.experiment import Experiment
from simulations.engine.virtual_sites import prepare_federation
from simulations.probes.heads import compare_heads

SMALL = ("data.phantom_sites=2", "model.tokens=1", "federation.rounds=1")


@pytest.mark.integration
def test_every_way_is_compared_with_local_training_at_every_site(
    micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    federation = prepare_federation(micro(*SMALL))
    found = compare_heads(federation, ["federation.rounds=2", "training.token_lr=0.05"], tmp_path)
    ways, heads = ("personalised heads", "head averaged", "fixed head"), ("kept", "trained anew", "closed form")
    assert list(found) == [("local", "trained"), *((way, head) for way in ways for head in heads)]
    assert all(set(scores) == set(federation.data.sites) for scores in found.values())
    assert len({tuple(found[way, "kept"].values()) for way in ways}) == len(ways)


@pytest.mark.integration
def test_prompts_that_nothing_moves_are_worth_what_their_heads_are(
    micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    still = ["training.prompt_lr=0", "training.token_lr=0"]
    federation = prepare_federation(micro(*SMALL, *still))
    found = compare_heads(federation, [], tmp_path)
    for head in ("trained anew", "closed form"):
        assert found["personalised heads", head] == found["head averaged", head] == found["fixed head", head]
    assert found["personalised heads", "trained anew"] == found["local", "trained"]


def test_evidence_that_no_site_reaches_leaves_the_fixed_head(micro: Callable[..., Experiment], tmp_path: Path) -> None:
    federation = prepare_federation(micro(*SMALL))
    found = compare_heads(federation, ["training.token_lr=0.05"], tmp_path, ["fixed head"], [0.001, 1e12])
    assert {way for way, _ in found} == {"local", "fixed head"}
    assert found["fixed head", "kept, own counts half from 1e+12"] == found["fixed head", "kept"]
    assert found["fixed head", "kept, own counts half from 0.001"] != found["fixed head", "kept"]
