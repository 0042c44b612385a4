"""The likelihood ratios find planted members as well as theory says, and nothing where nothing was planted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from ept_fed.privacy.attacks.membership import measure_advantage, measure_detection, measure_detections
from ept_fed.privacy.attacks.shadow_ratios import (
    MIN_SHADOWS,
    ShadowRuns,
    compare_with_other_sites,
    ratio_offline,
    ratio_online,
    true_margins,
)

RUNS, CANDIDATES = 65, 400


def draw(shift: float, *, width: int = 3, runs: int = RUNS, seed: int = 0) -> ShadowRuns:
    """Return runs in which members answer higher by `shift` standard deviations, in correlated answers of other scales.

    Every candidate has its own mean, far wider than the shift, as an easy and a hard image have.
    """
    rng = np.random.default_rng(seed)
    member = rng.permuted(np.tile(np.arange(runs) % 2 == 0, (CANDIDATES, 1)), axis=1).T
    mixing = rng.normal(size=(width, width))
    noise = rng.normal(size=(runs, CANDIDATES, width)) @ mixing
    means = 10 * rng.normal(size=(CANDIDATES, width))
    direction = np.linalg.solve(np.linalg.cholesky(mixing.T @ mixing).T, np.eye(width)[0])
    direction = shift * (mixing.T @ mixing) @ direction / np.sqrt(direction @ (mixing.T @ mixing) @ direction)
    return ShadowRuns(means + noise + member[..., None] * direction, member)


def rate(scores: np.ndarray, member: np.ndarray) -> float:
    groups = [str(number) for number in range(len(member))]
    return measure_advantage(scores, member, groups, np.random.default_rng(0)).value


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0])
def test_the_ratio_is_as_strong_as_the_best_test_can_be_and_a_threshold_is_not(shift: float) -> None:
    runs = draw(shift)
    best = norm.cdf(shift / np.sqrt(2))
    found = {"online": [], "offline": [], "threshold": []}
    groups = np.array([str(number) for number in range(CANDIDATES)])
    for number in range(8):
        others, member = runs.without(number), runs.member[number]
        found["online"].append(rate(ratio_online(runs.seen[number], others), member))
        found["offline"].append(rate(ratio_offline(runs.seen[number], others, groups), member))
        found["threshold"].append(rate(runs.seen[number][:, 0], member))
    assert np.mean(found["online"]) == pytest.approx(best, abs=0.03)
    assert np.mean(found["offline"]) == pytest.approx(best, abs=0.03)
    assert abs(np.mean(found["threshold"]) - 0.5) < max(0.05, (best - 0.5) / 2)


def test_the_offline_ratio_does_not_use_shadow_runs_with_the_candidate() -> None:
    runs = draw(1.0)
    groups = np.array(["other"] + ["same"] * (CANDIDATES - 1))
    changed = runs.seen.copy()
    # What the candidate's own member runs say of it would change its score, if it were used for more than the scale.
    changed[runs.member[:, 0], 0] += 5.0
    before, after = (
        ratio_offline(runs.seen[0], ShadowRuns(seen, runs.member), groups)[0] for seen in (runs.seen, changed)
    )
    assert after == pytest.approx(before, rel=1e-9)


def test_too_few_shadow_runs_are_refused() -> None:
    runs = draw(1.0, runs=2 * MIN_SHADOWS)
    assert runs.enough
    few = runs.without(0)
    assert not few.enough
    with pytest.raises(ValueError, match="only 3 shadow runs"):
        ratio_online(few.seen[0], few)


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_a_margin_is_the_log_odds_of_the_true_class(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = 3 * rng.normal(size=(5, classes)), rng.integers(classes, size=5)
    p = np.exp(logits)[np.arange(5), labels] / np.exp(logits).sum(1)
    assert np.allclose(true_margins(logits, labels), np.log(p / (1 - p)))
    one_hot = np.eye(classes)[labels]
    signed = np.where(one_hot > 0, logits, -logits)
    assert np.allclose(true_margins(logits, one_hot), signed.mean(1))


def test_an_update_of_the_own_site_stands_out_among_those_of_others() -> None:
    rng = np.random.default_rng(0)
    member = np.arange(400) < 200
    others = rng.normal(size=(5, 3, 400)) + 10 * rng.normal(size=400)
    own = others[:, 0] + rng.normal(size=(5, 400)) + 1.5 * member
    scores = compare_with_other_sites(own, others[:, 1:])
    assert rate(scores, member) > 0.8
    assert abs(rate(scores, rng.permutation(member)) - 0.5) < 0.1
    with pytest.raises(ValueError, match="two other sites"):
        compare_with_other_sites(own, others[:, :1])


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.booleans())
def test_detections_of_one_run_are_those_of_a_single_curve(seed: int, runs: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(3, size=(runs, 30)).astype(float) if ties else rng.normal(size=(runs, 30))
    member = np.tile(np.arange(30) % 2 == 0, (runs, 1))
    groups = [str(number) for number in range(30)]
    found = measure_detections(scores, member, groups, np.random.default_rng(0))
    flat, truth = scores.ravel(), member.ravel()
    higher = (flat[truth][:, None] > flat[~truth][None]) + 0.5 * (flat[truth][:, None] == flat[~truth][None])
    assert found.auc.value == pytest.approx(higher.mean())
    assert found.at_1.value == pytest.approx(measure_detection(flat, truth, 0.01))
    assert found.at_01.value <= found.at_1.value
    assert found.auc.low <= found.auc.value <= found.auc.high
