import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.evaluation.candidates import MIX_GRID, choose_candidate, mix, mix_weight
from tests.effort import examples

Array = npt.NDArray[Any]


def guess(labels: Array, strength: float, seed: int = 0) -> Array:
    """Return probabilities (n, 3) whose logits point to the label by `strength`, with noise."""
    logits = np.random.default_rng(seed).normal(size=(len(labels), 3))
    logits[np.arange(len(labels)), labels] += strength
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


LABELS = np.arange(120) % 3
GROUPS = [str(index // 2) for index in range(120)]


def test_a_clearly_better_local_model_is_chosen() -> None:
    found = choose_candidate(
        LABELS, GROUPS, {"federated": guess(LABELS, 0.0), "local": guess(LABELS, 3.0, 1)}, "single_label"
    )
    assert found.name == "local"
    assert [row.name for row in found.rows] == ["federated", "local"]
    assert found.rows[1].difference == 0.0
    assert found.rows[0].difference > found.rows[0].standard_error


def test_between_equal_models_the_federation_is_mostly_chosen() -> None:
    """Of two equally good models, the one is worse than the other by more than a standard error in one case of six."""
    chosen = [
        choose_candidate(
            LABELS,
            GROUPS,
            {"federated": guess(LABELS, 2.0, 2 * seed), "local": guess(LABELS, 2.0, 2 * seed + 1)},
            "single_label",
        )
        for seed in range(40)
    ]
    kept = [found for found in chosen if found.name == "federated"]
    assert 28 <= len(kept) < 40
    assert any("within one standard error" in found.reason for found in kept)


def test_confidence_alone_does_not_win() -> None:
    """The same model with logits of half the size is no other model."""
    sharp = guess(LABELS, 2.0)
    flat = np.sqrt(sharp) / np.sqrt(sharp).sum(axis=1, keepdims=True)
    rows = choose_candidate(LABELS, GROUPS, {"sharp": sharp, "flat": flat}, "single_label").rows
    assert rows[0].loss == pytest.approx(rows[1].loss, abs=0.02)


def test_without_validation_images_the_first_candidate_is_used_and_the_reason_is_said() -> None:
    empty = np.zeros((0, 3))
    found = choose_candidate(np.zeros(0, int), [], {"federated": empty, "local": empty}, "single_label")
    assert (found.name, found.rows) == ("federated", ())
    assert "no validation images" in found.reason


def test_with_one_patient_the_lowest_loss_decides() -> None:
    candidates = {"federated": guess(LABELS[:4], 0.0), "local": guess(LABELS[:4], 3.0)}
    found = choose_candidate(LABELS[:4], ["a"] * 4, candidates, "single_label")
    assert found.name == "local"
    assert math.isnan(found.rows[0].standard_error)


def test_no_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        choose_candidate(LABELS, GROUPS, {}, "single_label")


@examples(25)
@given(copies=st.integers(4, 6), seed=st.integers(0, 1000))
def test_copies_of_an_image_in_a_group_add_no_evidence(copies: int, seed: int) -> None:
    labels = np.arange(30) % 3
    candidates = {"federated": guess(labels, 1.0, seed), "local": guess(labels, 1.3, seed + 1)}
    once = choose_candidate(labels, [str(index) for index in range(30)], candidates, "single_label").rows
    many = choose_candidate(
        np.tile(labels, copies),
        [str(index) for index in range(30)] * copies,
        {name: np.tile(scores, (copies, 1)) for name, scores in candidates.items()},
        "single_label",
    ).rows
    # The temperature's prior counts for less with more images, so the losses are not exactly equal. If copies counted
    # as evidence, the standard error would be half as large or less.
    for one, other in zip(once, many, strict=True):
        assert other.standard_error == pytest.approx(one.standard_error, rel=0.35, abs=1e-9)


@examples(25)
@given(
    share=st.sampled_from(MIX_GRID), seed=st.integers(0, 1000), task=st.sampled_from(["single_label", "multi_label"])
)
def test_a_mixture_has_the_weighted_sum_of_the_logits(share: float, seed: int, task: str) -> None:
    local, federated = guess(LABELS, 1.0, seed), guess(LABELS, 2.0, seed + 1)
    mixed = mix(local, federated, share, task)
    if task == "multi_label":
        logits = [np.log(scores / (1 - scores)) for scores in (mixed, local, federated)]
    else:
        logits = [np.log(scores) - np.log(scores[:, :1]) for scores in (mixed, local, federated)]
        np.testing.assert_allclose(mixed.sum(axis=1), 1.0)
    np.testing.assert_allclose(logits[0], share * logits[1] + (1 - share) * logits[2], atol=1e-8)


def test_the_share_follows_the_better_model() -> None:
    good, bad = guess(LABELS, 4.0), guess(LABELS, 0.0, 1)
    assert mix_weight(LABELS, GROUPS, good, bad, "single_label")[0] == MIX_GRID[-1]
    assert mix_weight(LABELS, GROUPS, bad, good, "single_label")[0] == MIX_GRID[0]


def test_the_share_of_a_group_is_chosen_without_its_own_images() -> None:
    """One group prefers the local model and all others the federated one, whose share the first one then gets."""
    labels = np.zeros(20, int)
    yes, no = np.tile([0.98, 0.01, 0.01], (20, 1)), np.tile([0.01, 0.98, 0.01], (20, 1))
    local = np.where(np.arange(20)[:, None] < 10, yes, no)
    federated = np.where(np.arange(20)[:, None] < 10, no, yes)
    groups = ["one"] * 10 + [str(index) for index in range(10)]
    _, scores = mix_weight(labels, groups, local, federated, "single_label")
    # Without the first group, only images that the federated model has right are left.
    np.testing.assert_allclose(scores[:10], mix(local, federated, MIX_GRID[0], "single_label")[:10])
