"""Tests that a site trains the same with and without kept outputs of its frozen layers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from client.site.site import Site
from ept_fed.config.experiment import Experiment
from ept_fed.data.datasets.prefixed import PrefixedDataset
from ept_fed.errors import InputRefusedError
from ept_fed.protocol.messages import RoundRequest
from ept_fed.run_plan.plan import Plan
from simulations.engine.virtual_sites import prepare_federation

Micro = Callable[..., Experiment]
VIEWS = ("data.augmentation.views=2", "model.device=cpu")
LATE = ("model.prompt_layers=[3, 5]", "model.tokens=2")
RUNS = {
    "prompts": LATE,
    "prompts and head": (*LATE, "federation.share=prompts+head"),
    "prompts without tokens": ("model.prompt_layers=[5]",),
    "fixed and LDA head": (*LATE, "training.head=fixed+lda"),
    "LDA head": (*LATE, "training.head=lda"),
    "ditto": (*LATE, "personalisation.ditto=0.1"),
    "linear": ("model.method=linear", "federation.share=prompts+head", "federation.payload=raw"),
    "mlp_3": ("model.method=mlp_3", "federation.payload=raw"),
    "partial_1": ("model.method=partial_1", "federation.payload=raw"),
}


def open_site(experiment: Experiment) -> tuple[Plan, Site]:
    federation = prepare_federation(experiment)
    return federation.plan(), federation.create_site(federation.data.sites["site-1"])


def train(plan: Plan, site: Site) -> list[tuple[np.ndarray, dict[str, float]]]:
    """Return two rounds' payloads and metrics; the second starts from the first's payload."""
    replies, payload = [], plan.initial
    for number in (1, 2):
        request = RoundRequest(plan.header(number), "train", plan.rounds, payload, "train", plan.training)
        reply = site.train(request)
        assert reply.payload is not None
        payload = reply.payload
        replies.append((payload, {key: value for key, value in reply.metrics.items() if key != "seconds"}))
    with site.hold(payload) as held:
        _, metrics = held.assess(site.data.test)
    return [*replies, (site.initial(), metrics)]


@pytest.mark.parametrize("overrides", RUNS.values(), ids=RUNS)
def test_training_with_kept_outputs_equals_training_without(micro: Micro, overrides: tuple[str, ...]) -> None:
    kept, anew = (open_site(micro(*VIEWS, *overrides, *more)) for more in ((), ("model.prefix_memory=0",)))
    assert all(isinstance(part, PrefixedDataset) for part in kept[1].data.parts())
    assert not any(isinstance(part, PrefixedDataset) for part in anew[1].data.parts())
    for (ours, our_metrics), (theirs, their_metrics) in zip(train(*kept), train(*anew), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        assert our_metrics == pytest.approx(their_metrics, abs=1e-5, nan_ok=True)


def test_frozen_layers_run_once_per_image_and_view(micro: Micro, monkeypatch: pytest.MonkeyPatch) -> None:
    _, site = open_site(micro(*VIEWS, *LATE))
    seen = 0
    with site.hold() as held:
        kind = type(held.model)
    whole = kind.forward_prefix

    def count(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        # Batches are filled up with zeros, which an image never is.
        seen += int((images.flatten(1).abs().sum(1) > 0).sum())
        return whole(model, images)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "forward_prefix", count)
    for number in range(1, 9):
        site.fit(micro(*VIEWS, *LATE).training, number, 8)
        with site.hold() as held:
            held.assess(site.data.test)
    assert seen == 2 * len(site.data.train) + len(site.data.validation) + len(site.data.test)


def test_models_that_train_from_the_first_block_on_keep_nothing(micro: Micro) -> None:
    for overrides in (
        (),
        ("model.method=lora", "federation.payload=raw"),
        ("model.method=vp", "federation.payload=raw"),
    ):
        _, site = open_site(micro(*VIEWS, *overrides))
        assert not any(isinstance(part, PrefixedDataset) for part in site.data.parts())


def test_memory_that_does_not_suffice_for_one_image_is_refused_with_what_it_needs(
    micro: Micro, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.site.factory._MIB", 1024)
    with pytest.raises(InputRefusedError, match="one image of test_vit needs 5; give more, or 0") as refusal:
        open_site(micro(*VIEWS, *LATE, "model.prefix_memory=4"))
    assert [problem.field for problem in refusal.value.problems] == ["model.prefix_memory"]


def test_views_that_would_all_be_equal_are_refused(micro: Micro) -> None:
    same = ("data.augmentation.crop_scale=[1.0, 1.0]", "data.augmentation.flip=false")
    with pytest.raises(InputRefusedError, match="are all equal without crop and flip; set it to 1"):
        micro(*VIEWS, *same)
    assert micro(*VIEWS, *same, "data.augmentation.views=1").data.augmentation.views == 1
