"""The head in use is the fixed head plus a share of the site's LDA head; prompts train with only the fixed head."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from client.site.held_model import HeldModel
from client.site.personalise import fine_tune
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.progress import Silent
from ept_fed.protocol.messages import MessageRefusedError, RoundRequest
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.training.fixed_head import FixedHead
from simulations.benchmark.grid import list_cells
from simulations.engine.baselines import train_local
from simulations.engine.virtual_sites import prepare_federation
from tests.ept_fed.training.federating import train_federation

Micro = Callable[..., Experiment]
BOTH = ("training.head=fixed+lda", "model.tokens=1", "federation.rounds=2", "data.phantom_sites=2")
FIXED = ("training.head=fixed", *BOTH[1:])


def head_of(held: HeldModel) -> tuple[np.ndarray, np.ndarray]:
    head: nn.Linear = held.model.head
    return head.weight.detach().numpy().copy(), head.bias.detach().numpy().copy()


def expected_head(held: HeldModel, start: Mapping[str, np.ndarray], evidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the fixed head plus the share of the head that `head: lda` computes for the current prompts."""
    assert held.head_fit is not None
    replace(held.head_fit, fixed=None).apply(held.model, held.data.train)
    weight, bias = head_of(held)
    labels = held.data.train.labels.numpy()
    each = len(labels) / len(np.unique(labels))
    share = each / (each + evidence)
    return start["model/head.weight"] + share * weight, start["model/head.bias"] + share * bias


@given(images=st.floats(0, 1e6), evidence=st.floats(0.01, 100), seed=st.integers(0, 99))
def test_the_lda_share_grows_from_zero_to_one_with_the_images(images: float, evidence: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, bias, own, offset = rng.normal(size=(3, 4)), rng.normal(size=3), rng.normal(size=(3, 4)), rng.normal(size=3)
    fixed = FixedHead(weight, bias, evidence)
    for found, expected in zip(fixed.add(own, offset, 0), (weight, bias), strict=True):
        np.testing.assert_array_equal(found, expected)
    half = fixed.add(own, offset, evidence)
    np.testing.assert_allclose(half[0], weight + own / 2)
    np.testing.assert_allclose(half[1], bias + offset / 2)
    fewer, more = (fixed.add(own, offset, number)[0] - weight for number in (images, images + 1))
    assert np.linalg.norm(fewer) < np.linalg.norm(more) < np.linalg.norm(own)


@pytest.mark.integration
def test_prompts_train_as_with_only_the_fixed_head(micro: Micro, tmp_path: Path) -> None:
    _, fixed = train_federation(prepare_federation(micro(*FIXED)), tmp_path / "fixed")
    _, both = train_federation(prepare_federation(micro(*BOTH)), tmp_path / "both")
    assert np.array_equal(fixed, both)
    alone = [
        train_local(prepare_federation(micro(*settings)), RunFolder(tmp_path / settings[0]), Silent())
        for settings in (FIXED, BOTH)
    ]
    for name, site in alone[0].items():
        assert np.array_equal(site.own_payload(), alone[1][name].own_payload())


@pytest.mark.parametrize("evidence", [0.5, 4.0])
def test_each_site_in_use_adds_its_own_lda_share(micro: Micro, tmp_path: Path, evidence: float) -> None:
    federation = prepare_federation(micro(*BOTH, f"training.head_evidence={evidence}"))
    sites, payload = train_federation(federation, tmp_path)
    heads = []
    for site in sites.values():
        with site.hold(payload) as held:
            heads.append(head_of(held))
            for found, expected in zip(heads[-1], expected_head(held, federation.slot.start, evidence), strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(heads[0][0], heads[1][0])


def test_multi_label_images_count_by_class(micro: Micro) -> None:
    federation = prepare_federation(micro(*BOTH))
    site = federation.create_site(next(iter(federation.data.sites.values())))
    with site.hold(site.initial()) as held:
        single = head_of(held)
        images = site.data.train
        images.labels, images.task = nn.functional.one_hot(images.labels, held.model.head.out_features), "multi_label"
        assert held.head_fit is not None
        held.head_fit.apply(held.model, images)
        several = head_of(held)
        assert np.isfinite(several[0]).all()
        assert np.linalg.norm(several[0] - federation.slot.start["model/head.weight"]) > 0
        assert not np.allclose(single[0], several[0])
        images.labels = torch.zeros_like(images.labels)
        held.head_fit.apply(held.model, images)
        np.testing.assert_array_equal(head_of(held)[0], federation.slot.start["model/head.weight"])


def test_a_local_model_ends_with_its_lda_share_and_resumes_from_the_fixed_head(micro: Micro, tmp_path: Path) -> None:
    federation = prepare_federation(micro(*BOTH))
    whole = train_local(federation, RunFolder(tmp_path / "whole"), Silent())
    for name, data in federation.data.sites.items():
        states = federation.keep_states(RunFolder(tmp_path / "parts"), "local", name)
        federation.create_site(data, states).fit(federation.experiment.training, 1, 2)
        again = federation.create_site(data, states)
        again.fit(federation.experiment.training, 2, 2)
        assert np.array_equal(again.own_payload(), whole[name].own_payload())
        with again.hold() as held:
            for found, expected in zip(head_of(held), expected_head(held, federation.slot.start, 4.0), strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_fine_tuned_prompts_train_with_the_fixed_head_and_get_their_own_lda_share(micro: Micro) -> None:
    tuned = {}
    for settings in (FIXED, BOTH):
        federation = prepare_federation(micro(*settings))
        site = federation.create_site(next(iter(federation.data.sites.values())))
        with site.hold(site.initial()) as held:
            fine_tune(held, federation.experiment.training, epochs=1, seed=0)
            tuned[settings[0]] = (held.export(), head_of(held))
    assert np.array_equal(tuned[FIXED[0]][0], tuned[BOTH[0]][0])
    assert not np.allclose(tuned[FIXED[0]][1][0], tuned[BOTH[0]][1][0])


def test_a_request_for_another_kind_of_head_is_refused(micro: Micro) -> None:
    federation = prepare_federation(micro(*BOTH))
    site, plan = federation.create_site(next(iter(federation.data.sites.values()))), federation.plan()
    for kind in ("lda", "fixed", "trained"):
        other = federation.experiment.training.model_copy(update={"head": kind})
        request = RoundRequest(plan.header(1), "train", plan.rounds, plan.initial, "train", other)
        with pytest.raises(MessageRefusedError, match=r"training\.head"):
            site.train(request)


def test_a_benchmark_has_no_cell_that_shares_the_head(micro: Micro) -> None:
    grid = "benchmark={methods: [both], reference: both, seeds: [0], variants: {both: [training.head=fixed+lda]}}"
    cells = list_cells(micro(grid))
    assert {cell.setting for cell in cells} == {"local", "federated", "centralised"}


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (("federation.share=prompts+head",), "federation.share"),
        (("training.head_first_epochs=1",), "training.head_first_epochs"),
        (("personalisation.ditto=0.1",), "personalisation.ditto"),
        (("model.method=linear", "model.tokens=0", "federation.payload=raw"), "training.head"),
        (("training.head_evidence=0",), "training.head_evidence"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(overrides: tuple[str, ...], field: str, micro: Micro) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        micro(*BOTH, *overrides)
    assert field in {problem.field for problem in refusal.value.problems}


def test_the_head_of_a_centralised_model_is_computed_from_all_images(micro: Micro) -> None:
    federation = prepare_federation(micro(*BOTH))
    pooled = federation.create_site(federation.centralised())
    pooled.fit(federation.experiment.training, 1, 1)
    with pooled.hold() as held:
        assert torch.isfinite(held.model.head.weight).all()
        for found, expected in zip(head_of(held), expected_head(held, federation.slot.start, 4.0), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
