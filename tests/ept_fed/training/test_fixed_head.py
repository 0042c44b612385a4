"""The fixed head: every site draws it from the run's seed, so that the prompts determine the whole model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.progress import Silent
from ept_fed.reports.run.run_folder import RunFolder
from simulations.benchmark.grid import list_cells
from simulations.engine.baselines import train_centralised_prompts
from simulations.engine.virtual_sites import prepare_federation
from tests.ept_fed.training.federating import train_federation

Micro = Callable[..., Experiment]
FIXED = ("training.head=fixed", "model.tokens=1", "federation.rounds=2", "data.phantom_sites=2")
PRIVATE = ("training.privacy={clip: 1.0, noise_multiplier: 1.0}", "model.method=ept")


@pytest.mark.parametrize("private", [(), PRIVATE], ids=["", "private"])
def test_no_site_changes_the_fixed_head_and_all_classify_alike(
    micro: Micro, tmp_path: Path, private: tuple[str, ...]
) -> None:
    federation = prepare_federation(micro(*FIXED, *private))
    start = federation.slot.start
    sites, payload = train_federation(federation, tmp_path)
    assert not np.array_equal(payload, federation.plan().initial)
    images = next(iter(federation.data.sites.values())).test
    told = []
    for site in sites.values():
        with site.hold(payload) as held:
            assert torch.equal(held.model.head.weight, torch.from_numpy(start["model/head.weight"]))
            told.append(held.assess(images)[0])
    for other in told[1:]:
        np.testing.assert_allclose(other, told[0], atol=1e-6)


def test_prompts_train_as_with_a_head_of_learning_rate_zero(micro: Micro, tmp_path: Path) -> None:
    _, fixed = train_federation(prepare_federation(micro(*FIXED, "training.fixed_head_std=0.01")), tmp_path / "fixed")
    still = micro(*FIXED[1:], "training.head_lr=0")
    _, held = train_federation(prepare_federation(still), tmp_path / "held")
    np.testing.assert_allclose(fixed, held, atol=1e-6)


def test_centralised_prompts_use_the_fixed_head_too(micro: Micro, tmp_path: Path) -> None:
    federation = prepare_federation(micro(*FIXED))
    drawn = prepare_federation(micro(*FIXED)).slot.model.head
    sites, prompts = train_centralised_prompts(federation, RunFolder(tmp_path), Silent())
    assert prompts is not None
    for site in sites.values():
        with site.hold(prompts) as held:
            assert torch.equal(held.model.head.weight, drawn.weight)
            assert torch.equal(held.model.head.bias, drawn.bias)


def test_a_benchmark_has_no_cell_that_shares_the_head(micro: Micro) -> None:
    grid = "benchmark={methods: [fixed], reference: fixed, seeds: [0], variants: {fixed: [training.head=fixed]}}"
    cells = list_cells(micro(grid))
    assert {cell.setting for cell in cells} == {"local", "federated", "centralised"}
    assert {cell.experiment.federation.share for cell in cells} == {"prompts"}


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (("federation.share=prompts+head",), "federation.share"),
        (("training.head_first_epochs=1",), "training.head_first_epochs"),
        (("model.method=linear", "model.tokens=0", "federation.payload=raw"), "training.head"),
    ],
)
def test_settings_that_do_not_fit_a_fixed_head_are_refused(
    overrides: tuple[str, ...], field: str, micro: Micro
) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        micro(*FIXED, *overrides)
    assert field in {problem.field for problem in refusal.value.problems}
