"""Shared statistics: sites that share them get the head that all their images together would give."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from client.site.site import Site
from ept_fed.catalog.methods import Statistics
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.progress import Silent
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError, Vector
from ept_fed.protocol.messages import Header, RoundReply, RoundRequest
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.training.class_statistics import pack_statistics, shape_statistics, unpack_statistics
from ept_fed.training.lda import ClassStatistics, average_statistics, measure_statistics, solve_lda
from simulations.engine.federate import federate
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

Micro = Callable[..., Experiment]
SHARED = ("training.head=lda", "federation.share=prompts+head", "federation.statistics=moments", "data.phantom_sites=2")
STILL = ("training.prompt_lr=0", "training.token_lr=0")
LINEAR = ("model.method=linear", "federation.payload=raw")
MASKED = ("federation.secure_aggregation={}", "federation.norm_bound=null", "data.phantom_sites=3")
KINDS: tuple[Statistics, ...] = ("means", "moments")


def draw(seed: int, sites: int, classes: int, width: int, *, multi_label: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw features (n, D) and labels for some sites; n and the classes that occur differ between sites."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    drawn = []
    for _ in range(sites):
        images = int(rng.integers(2, 12))
        labels = rng.integers(0, classes, images)
        x = centres[labels] + rng.normal(size=(images, width))
        drawn.append((x, (rng.random((images, classes)) < 0.4).astype(float) if multi_label else labels))
    return drawn


def average(
    measured: list[ClassStatistics], weights: list[int], kind: Statistics, *, classes: int, width: int
) -> ClassStatistics:
    """Return the server's average of the sites' payloads, as a site reads it."""
    shapes = shape_statistics(kind, classes=classes, width=width)
    layout = PayloadLayout(tuple(shapes.items()))
    vectors = [layout.flatten(pack_statistics(statistics, shapes)) for statistics in measured]
    mean = np.average(np.stack(vectors), axis=0, weights=weights).astype(np.float32)
    read = unpack_statistics(layout.unflatten(mean))
    assert read is not None
    return read


@pytest.mark.parametrize("multi_label", [False, True])
@given(seed=st.integers(0, 999), sites=st.integers(1, 5), classes=st.integers(2, 5), width=st.integers(2, 9))
def test_the_head_of_shared_moments_is_that_of_all_images_together(
    seed: int, sites: int, classes: int, width: int, multi_label: bool
) -> None:
    drawn = draw(seed, sites, classes, width, multi_label=multi_label)
    # Statistics of images without any class are refused.
    assume(any(y.any() or not multi_label for _, y in drawn))
    measured = [measure_statistics(x, y, classes=classes) for x, y in drawn]
    together = measure_statistics(*map(np.concatenate, zip(*drawn, strict=True)), classes=classes)
    mean = average(measured, [len(x) for x, _ in drawn], "moments", classes=classes, width=width)
    heads = [solve_lda(of, of, multi_label=multi_label, shrinkage=0.3) for of in (mean, together)]
    everywhere = np.concatenate([x for x, _ in drawn])
    one, other = (everywhere @ weight.T + bias for weight, bias in heads)
    np.testing.assert_allclose(one, other, atol=2e-4)


@given(seed=st.integers(0, 999), classes=st.integers(2, 5), width=st.integers(2, 9))
def test_shared_means_are_the_centres_of_the_sites_own_spread(seed: int, classes: int, width: int) -> None:
    drawn = draw(seed, 3, classes, width, multi_label=False)
    x, y = drawn[0]
    measured = [measure_statistics(x, y, classes=classes) for x, y in drawn]
    mean = average(measured, [len(x) for x, _ in drawn], "means", classes=classes, width=width)
    assert mean.moments is None
    everything, labels = map(np.concatenate, zip(*drawn, strict=True))
    present = np.unique(labels)
    centres = np.stack([everything[labels == c].mean(0) for c in present])
    around = x - centres[np.searchsorted(present, y)]
    within = around.T @ around / len(x)
    # If every class has only one image, there is no spread, and all directions count equally.
    spread = np.trace(within) / width
    covariance = 0.7 * within + 0.3 * spread * np.eye(width) if spread > 1e-9 else np.eye(width)
    wanted = x @ np.linalg.solve(covariance, centres.T)
    wanted -= 0.5 * np.einsum("gd,dg->g", centres, np.linalg.solve(covariance, centres.T))
    wanted -= wanted.mean(1, keepdims=True)
    weight, bias = solve_lda(measured[0], mean, multi_label=False, shrinkage=0.3)
    found = (x @ weight.T + bias)[:, present]
    if wanted.std() > 0:
        np.testing.assert_allclose(found, 2 * wanted / wanted.std(), rtol=1e-3, atol=1e-3)
    absent = np.setdiff1d(np.arange(classes), present)
    assert not weight[absent].any()


def test_a_class_that_only_the_site_itself_has_keeps_its_own_centre() -> None:
    x, y = np.eye(3), np.arange(3)
    own, others = measure_statistics(x, y, classes=3), measure_statistics(x[:2], y[:2], classes=3)
    weight, bias = solve_lda(own, others, multi_label=False, shrinkage=0.3)
    assert (x @ weight.T + bias).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 99), width=st.integers(1, 9))
def test_packed_statistics_are_read_back(kind: Statistics, seed: int, width: int) -> None:
    ((x, y),) = draw(seed, 1, 3, width, multi_label=False)
    measured = measure_statistics(x, y, classes=3)
    read = average([measured], [1], kind, classes=3, width=width)
    for name in ("shares", "sums", "mean", *(["moments"] if kind == "moments" else [])):
        np.testing.assert_allclose(getattr(read, name), getattr(measured, name), rtol=1e-5, atol=1e-5)


def test_before_any_measurement_there_are_no_statistics() -> None:
    shapes = shape_statistics("moments", classes=2, width=3)
    assert unpack_statistics(pack_statistics(None, shapes)) is None


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("statistics.shares", 0, -0.1),
        ("statistics.shares", 0, 1.1),
        ("statistics.shares", 0, 0.0),  # although the sums of this class are not zero
        ("statistics.shares", slice(None), 0.0),
        ("statistics.moments", 0, -1.0),
        ("statistics.moments", 1, 9.0),  # not a matrix of products: negative in a direction that is not an axis
        ("statistics.moments", slice(None), 0.0),
    ],
)
def test_statistics_that_no_images_can_have_are_refused(name: str, place: int | slice, value: float) -> None:
    shapes = shape_statistics("moments", classes=2, width=3)
    tensors = pack_statistics(measure_statistics(np.eye(3)[:2], np.arange(2), classes=2), shapes)
    tensors[name][place] = value
    with pytest.raises(PayloadMismatchError, match=name):
        unpack_statistics(tensors)


def test_a_covariance_without_moments_is_refused() -> None:
    shapes = shape_statistics("means", classes=2, width=3)
    means = unpack_statistics(pack_statistics(measure_statistics(np.eye(3), [0, 1, 1], classes=2), shapes))  # type: ignore[arg-type]
    assert means is not None
    with pytest.raises(ValueError, match="moments"):
        solve_lda(means, means, multi_label=False, shrinkage=0.3)
    with pytest.raises(ValueError, match="moments"):
        average_statistics([means], [3])
    with pytest.raises(ValueError, match="moments"):
        pack_statistics(means, shape_statistics("moments", classes=2, width=3))


def run(federation: VirtualFederation, folder: Path) -> tuple[dict[str, Site], Vector]:
    plan = federation.plan()
    scratch = RunFolder(folder)
    sites = {
        name: federation.create_site(data, federation.keep_states(scratch, "federated", name))
        for name, data in federation.data.sites.items()
    }
    result = federate(federation, plan, sites, scratch, Silent())
    return sites, result.payload


def heads(sites: dict[str, Site], payload: Vector) -> dict[str, torch.Tensor]:
    found = {}
    for name, site in sites.items():
        with site.hold(payload) as held:
            found[name] = held.model.head.weight.detach().clone()
    return found


@pytest.mark.parametrize("method", [STILL, LINEAR, (*STILL, *MASKED)], ids=["still", "linear", "masked"])
def test_one_round_gives_every_site_the_head_of_all_images(
    micro: Micro, tmp_path: Path, method: tuple[str, ...]
) -> None:
    federation = prepare_federation(micro(*SHARED, *method, "federation.rounds=1"))
    sites, payload = run(federation, tmp_path)
    first, *others = heads(sites, payload).values()
    assert all(torch.equal(first, other) for other in others)
    site = next(iter(sites.values()))
    measured = []
    for name, member in sites.items():
        site_head = member.settings.head
        assert site_head is not None
        with site.hold(payload) as held:
            images = federation.data.sites[name].train
            measured.append((site_head.measure(held.model, images), len(member.data.train)))
    pooled = average_statistics(*zip(*measured, strict=True))
    weight, _ = solve_lda(pooled, pooled, multi_label=False, shrinkage=0.3)
    np.testing.assert_allclose(first.numpy(), weight, rtol=0.02, atol=0.02 * np.abs(weight).max())


def ask(site: Site, plan: object, number: int, payload: Vector) -> RoundReply:
    header = Header(plan.run, number, plan.backbone_digest, plan.layout.hash)  # type: ignore[attr-defined]
    return site.train(RoundRequest(header, "train", plan.rounds, payload, "train", plan.training))  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_round_trains_nothing_and_measures_the_final_prompts(micro: Micro, kind: Statistics) -> None:
    federation = prepare_federation(micro(*SHARED, "federation.rounds=2", f"federation.statistics={kind}"))
    plan = federation.plan()
    site = federation.create_site(next(iter(federation.data.sites.values())))
    first = ask(site, plan, 1, plan.initial)
    assert first.payload is not None
    assert first.metrics["steps"] >= 1
    start, trained = plan.layout.unflatten(plan.initial), plan.layout.unflatten(first.payload)
    assert not np.array_equal(start["sinks"], trained["sinks"])
    last = ask(site, plan, 2, first.payload)
    assert last.payload is not None
    assert last.metrics["steps"] == 0
    last.check(last.header, plan.layout)
    kept = plan.layout.unflatten(last.payload)
    np.testing.assert_allclose(kept["sinks"], trained["sinks"], atol=1e-6)
    for name in ("statistics.sums", "statistics.mean"):
        np.testing.assert_allclose(kept[name], trained[name], atol=1e-5)
    assert site.state is not None
    assert site.state.round == 2


@pytest.mark.parametrize("method", [STILL, LINEAR])
def test_without_trainable_tensors_every_round_measures_and_a_local_model_has_its_own_head(
    micro: Micro, method: tuple[str, ...]
) -> None:
    federation = prepare_federation(micro(*SHARED, *method, "federation.rounds=3"))
    plan, data = federation.plan(), next(iter(federation.data.sites.values()))
    site, alone = federation.create_site(data), federation.create_site(data)
    reply = ask(site, plan, 1, plan.initial)
    assert reply.payload is not None
    assert reply.metrics["steps"] == 0
    reply.check(reply.header, plan.layout)
    outcome = alone.fit(federation.experiment.training, 1, 3)
    assert outcome.steps == 0
    with alone.hold() as held:
        assert held.head_fit is not None
        kept = held.model.head.weight.detach().clone()
        held.head_fit.apply(held.model, data.train)
        assert torch.equal(kept, held.model.head.weight)


def test_a_run_resumes_after_a_round_that_only_measured(micro: Micro, tmp_path: Path) -> None:
    federation = prepare_federation(micro(*SHARED, *STILL, "federation.rounds=1"))
    sites, payload = run(federation, tmp_path)
    again, same = run(federation, tmp_path / "again")
    assert np.array_equal(payload, same)
    one, other = heads(sites, payload), heads(again, same)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (("federation.strategy=fedadam",), "federation.strategy"),
        (("federation.patience=3",), "federation.patience"),
        (("federation.target_auc=0.9",), "federation.target_auc"),
        (
            ("federation.weights=uniform", "federation.site_privacy={noise: central, clip: 0.1, epsilon: 8}"),
            "federation.site_privacy",
        ),
        (("federation.statistics=medians",), "federation.statistics"),
        (("federation.sites_per_round=0.5",), "federation.sites_per_round"),
        (("federation.weights=uniform",), "federation.weights"),
        (("federation.secure_aggregation={}", "federation.norm_bound=null"), "federation.rounds"),
        (("personalisation.fine_tune_epochs=1",), "personalisation.fine_tune_epochs"),
        (("personalisation.interpolate=true",), "personalisation.interpolate"),
    ],
)
def test_settings_that_do_not_fit_shared_statistics_are_refused(
    overrides: tuple[str, ...], field: str, micro: Micro
) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        micro(*SHARED, *overrides)
    assert field in {problem.field for problem in refusal.value.problems}
