"""Centralised prompts, frozen at the sites under personalised heads: the ceiling for sharing only prompts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.site.site import Site
from client.site.state_store import capture_model
from ept_fed.config.experiment import Experiment
from ept_fed.progress import Silent
from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.run_folder import RunFolder
from simulations.engine.baselines import train_centralised, train_centralised_prompts, train_local
from simulations.engine.virtual_sites import prepare_federation

Micro = Callable[..., Experiment]

TWO_SITES = ("data.phantom_sites=2",)
METHODS = {
    "sinks": (),
    "tokens": ("model.tokens=1",),
    "tokens, lda head": ("model.tokens=1", "training.head=lda"),
    "lora": ("model.method=lora", "federation.payload=raw"),
}


def heads(sites: Mapping[str, Site], prompts: Vector | None = None) -> dict[str, Any]:
    found = {}
    for name, site in sites.items():
        with site.hold(prompts) as held:
            found[name] = capture_model(held.model)["model/head.weight"]
    return found


@pytest.mark.integration
@pytest.mark.parametrize("method", METHODS)
def test_sites_use_the_centralised_prompts_under_personalised_heads(method: str, micro: Micro, tmp_path: Path) -> None:
    federation = prepare_federation(micro(*METHODS[method], *TWO_SITES, "federation.rounds=3"))
    pooled = train_centralised(federation, RunFolder(tmp_path / "pooled"), Silent())
    untrained = federation.plan().initial
    expected, pooled_head = pooled.own_payload(), heads({"pooled": pooled})["pooled"]
    sites, prompts = train_centralised_prompts(federation, RunFolder(tmp_path / "ceiling"), Silent())
    for site in sites.values():
        with site.hold(prompts) as held:
            np.testing.assert_allclose(held.export(), expected, atol=1e-5)
            assert not np.allclose(held.export(), untrained, atol=1e-3)
    found = heads(sites, prompts)
    start = federation.slot.start["model/head.weight"]
    first, *others = [*found.values(), pooled_head, start]
    assert not any(np.allclose(first, other, atol=1e-4) for other in others)


def test_untrained_centralised_prompts_give_the_heads_of_local_models(micro: Micro, tmp_path: Path) -> None:
    still = ("training.prompt_lr=0", "training.token_lr=0", "training.method_lr=0", "model.tokens=1")
    federation = prepare_federation(micro(*still, *TWO_SITES))
    home = heads(train_local(federation, RunFolder(tmp_path / "home"), Silent()))
    found = heads(*train_centralised_prompts(federation, RunFolder(tmp_path / "ceiling"), Silent()))
    for name, head in home.items():
        np.testing.assert_allclose(found[name], head, atol=1e-6)
