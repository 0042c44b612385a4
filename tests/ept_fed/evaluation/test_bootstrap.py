import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ept_fed.evaluation.bootstrap import MIN_GROUPS, assess_difference, resample, summarise, summarise_share
from ept_fed.evaluation.metrics import Array
from ept_fed.evaluation.weighted_metrics import Sample, class_averages, class_ranks
from tests.effort import examples

ORDER = {"harmed": 0, "no clear difference": 1, "helped": 2}


def weights_themselves(weights: Array) -> Array:
    return weights


@examples(10)
@given(codes=st.lists(st.integers(0, 5), min_size=1, max_size=30), seed=st.integers(0, 1000))
def test_groups_are_drawn_whole_and_their_number_is_kept(codes: list[int], seed: int) -> None:
    names = [f"patient {code}" for code in codes]
    drawn = resample(weights_themselves, names, np.random.default_rng(seed), 50)
    assert drawn.shape == (50, len(codes))
    places = {name: [i for i, other in enumerate(names) if other == name] for name in names}
    for members in places.values():
        assert (drawn[:, members] == drawn[:, members[:1]]).all()
    assert (sum(drawn[:, members[0]] for members in places.values()) == len(places)).all()


def test_the_same_seed_draws_the_same_patients() -> None:
    first, again, other = (
        resample(weights_themselves, list("aabbc"), np.random.default_rng(seed), 20) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_intervals_of_a_paired_auc_difference_cover_the_truth() -> None:
    """200 sites of 60 patients; a patient's two images share one difficulty; the nominal coverage is 95 %."""
    truth, covered = paired_difference(np.random.default_rng(0), patients=20_000, draws=0)[0], []
    for seed in range(200):
        value, draws = paired_difference(np.random.default_rng(seed + 1), patients=60, draws=400)
        gap = assess_difference(value, draws, 60)
        covered.append(gap.low <= truth <= gap.high)
    assert 0.90 <= np.mean(covered) <= 0.99


def paired_difference(rng: np.random.Generator, *, patients: int, draws: int) -> tuple[float, Array]:
    """Return the AUC difference of two models on the same patients, and its resamples.

    The classes have unequal sizes, and the second model is better.
    """
    labels = np.repeat(rng.choice(3, patients, p=[0.6, 0.25, 0.15]), 2)
    shared = np.repeat(rng.normal(size=(patients, 3)), 2, axis=0) + 0.5 * rng.normal(size=(2 * patients, 3))
    hot = np.arange(3)[None, :] == labels[:, None]
    metrics = [
        class_ranks(Sample(hot, shared + gain * hot + 0.7 * rng.normal(size=hot.shape), "single_label"))
        for gain in (1.0, 1.4)
    ]

    def difference(weights: Array) -> Array:
        return class_averages(metrics[1](weights)[:, 0]) - class_averages(metrics[0](weights)[:, 0])

    groups = [str(i) for i in range(patients) for _ in range(2)]
    value = float(difference(np.ones((1, len(labels))))[0])
    return value, resample(difference, groups, rng, draws) if draws else np.zeros(0)


@examples(25)
@given(seed=st.integers(0, 10**6), center=st.floats(-1, 1), step=st.floats(0, 1), higher=st.booleans())
def test_a_better_difference_never_gets_a_worse_verdict(seed: int, center: float, step: float, higher: bool) -> None:
    draws = np.random.default_rng(seed).normal(center, 0.3, 200)
    before = assess_difference(center, draws, 50, higher_is_better=higher)
    better = step if higher else -step
    after = assess_difference(center + better, draws + better, 50, higher_is_better=higher)
    assert ORDER[after.verdict] >= ORDER[before.verdict]


@examples(25)
@given(shift=st.floats(-5, 5), scale=st.floats(0.01, 10), seed=st.integers(0, 1000))
def test_a_fortieth_of_the_resamples_lies_beyond_each_bound(shift: float, scale: float, seed: int) -> None:
    draws = shift + scale * np.random.default_rng(seed).permutation(np.arange(4001) / 4000)
    interval = summarise(shift + scale / 2, draws, MIN_GROUPS)
    assert [interval.low, interval.high] == pytest.approx([shift + scale * 0.025, shift + scale * 0.975])


def test_a_lower_loss_counts_as_helped() -> None:
    draws = np.linspace(-0.3, -0.1, 100)
    assert assess_difference(-0.2, draws, 50, higher_is_better=False).verdict == "helped"
    assert assess_difference(-0.2, draws, 50).verdict == "harmed"


def test_needed_patients_follow_the_square_root_law() -> None:
    gap = assess_difference(0.1, np.random.default_rng(0).normal(0.1, 0.1, 100_000), 100)
    assert gap.verdict == "no clear difference"
    assert gap.groups_needed == pytest.approx(100 * 1.96**2 - 100, rel=0.03)


@pytest.mark.parametrize("center", [0.0, 0.001])
def test_a_meaningless_number_of_needed_patients_is_not_reported(center: float) -> None:
    assert assess_difference(center, np.random.default_rng(0).normal(center, 0.1, 1000), 100).groups_needed is None


def test_a_clear_verdict_needs_no_more_patients() -> None:
    assert assess_difference(0.5, np.full(100, 0.5), 100).groups_needed is None


def test_equal_models_make_no_difference() -> None:
    gap = assess_difference(0.0, np.zeros(1000), 100)
    assert (gap.low, gap.high, gap.verdict, gap.groups_needed) == (0.0, 0.0, "no clear difference", None)


@pytest.mark.parametrize(
    ("value", "draws", "groups"),
    [
        (0.5, np.full(100, 0.5), MIN_GROUPS - 1),
        (0.5, np.full(100, np.nan), 100),
        (0.5, np.r_[np.full(30, np.nan), np.full(70, 0.5)], 100),
        (math.nan, np.full(100, 0.5), 100),
        (0.5, np.zeros(0), 100),
    ],
)
def test_without_enough_data_there_is_no_interval_and_no_verdict(value: float, draws: Array, groups: int) -> None:
    interval, gap = summarise(value, draws, groups), assess_difference(value, draws, groups)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert gap.verdict == "no clear difference"
    assert gap.groups_needed is None


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_zero_or_one_has_the_exact_interval(share: float) -> None:
    interval = summarise_share(share, np.full(100, share), 20)
    exact = binomtest(int(20 * share), 20).proportion_ci(0.95, method="exact")
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high))
    assert summarise_share(0.5, np.linspace(0.4, 0.6, 100), 20) == summarise(0.5, np.linspace(0.4, 0.6, 100), 20)


def test_two_thousand_images_of_seven_classes_take_seconds() -> None:
    rng = np.random.default_rng(0)
    sample = Sample.of(rng.integers(0, 7, 2000), rng.dirichlet(np.ones(7), 2000), "single_label")
    groups = [str(code) for code in rng.integers(0, 1200, 2000)]
    started = time.perf_counter()
    assert resample(class_ranks(sample), groups, rng, 1000).shape == (1000, 2, 7)
    assert time.perf_counter() - started < 10
