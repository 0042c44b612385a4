import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ept_fed.evaluation.metrics import MIN_SUPPORT, class_auc, classification_metrics, supported_auc
from ept_fed.protocol.messages import EVALUATE_METRICS
from tests.effort import examples


def draw(n: int, C: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.random((n, C))
    return rng.integers(0, C, n), scores / scores.sum(1, keepdims=True)


def test_the_metric_names_are_those_of_the_protocol() -> None:
    for task, labels in (("single_label", np.array([0, 1])), ("multi_label", np.eye(2))):
        metrics = classification_metrics(labels, np.full((2, 2), 0.5), task)
        assert set(metrics) == set(EVALUATE_METRICS) - {"seconds"}


def test_auc_equals_scikit_learns_where_all_classes_are_present() -> None:
    labels, scores = draw(200, 4, 0)
    want = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert classification_metrics(labels, scores, "single_label")["auc"] == pytest.approx(want)


def test_absent_classes_are_left_out_and_counted() -> None:
    labels, scores = draw(200, 4, 0)
    wider = np.concatenate([scores, np.zeros((200, 2))], axis=1)
    narrow = classification_metrics(labels, scores, "single_label")
    wide = classification_metrics(labels, wider, "single_label")
    assert wide["classes_present"] == 4
    for key in ("auc", "balanced_accuracy", "average_precision", "accuracy"):
        assert wide[key] == pytest.approx(narrow[key])


def test_undefined_metrics_are_nan() -> None:
    one_class = classification_metrics(np.zeros(5, int), np.full((5, 3), 1 / 3), "single_label")
    assert np.isnan(one_class["auc"])
    assert one_class["classes_present"] == 1
    nothing = classification_metrics(np.zeros(0, int), np.zeros((0, 3)), "single_label")
    assert nothing.pop("classes_present") == 0
    assert all(np.isnan(value) for value in nothing.values())


@examples(12)
@given(n=st.integers(1, 40), C=st.integers(2, 6), seed=st.integers(0, 2**16))
def test_defined_metrics_stay_in_their_range(n: int, C: int, seed: int) -> None:
    labels, scores = draw(n, C, seed)
    metrics = classification_metrics(labels, scores, "single_label")
    for key in ("auc", "accuracy", "balanced_accuracy", "average_precision"):
        assert np.isnan(metrics[key]) or 0 <= metrics[key] <= 1
    assert metrics["loss"] >= 0


@examples(10)
@given(seed=st.integers(0, 2**16))
def test_the_order_of_images_does_not_matter(seed: int) -> None:
    labels, scores = draw(30, 3, seed)
    order = np.random.default_rng(seed).permutation(30)
    first = classification_metrics(labels, scores, "single_label")
    second = classification_metrics(labels[order], scores[order], "single_label")
    assert dict(first) == pytest.approx(dict(second), nan_ok=True)


def test_perfect_scores_are_perfect_and_inverted_ones_are_not() -> None:
    labels = np.array([0, 1, 2, 1])
    perfect = classification_metrics(labels, np.eye(3)[labels], "single_label")
    assert perfect["auc"] == perfect["accuracy"] == perfect["balanced_accuracy"] == 1
    assert perfect["loss"] == pytest.approx(0, abs=1e-9)
    worst = classification_metrics(labels, (1 - np.eye(3)[labels]) / 2, "single_label")
    assert worst["auc"] == worst["accuracy"] == 0
    assert np.isfinite(worst["loss"])


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_present() -> None:
    labels = np.array([0, 0, 0, 2])
    scores = np.eye(3)[[0, 0, 1, 2]]
    assert classification_metrics(labels, scores, "single_label")["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)


def test_multi_label_metrics_equal_a_hand_computed_case() -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    scores = np.array([[0.9, 0.2, 0.1], [0.4, 0.8, 0.1], [0.6, 0.7, 0.1], [0.1, 0.1, 0.1]])
    metrics = classification_metrics(labels, scores, "multi_label")
    assert metrics["classes_present"] == 2
    assert metrics["accuracy"] == pytest.approx(10 / 12)
    assert metrics["auc"] == pytest.approx((0.75 + 1.0) / 2)
    assert metrics["average_precision"] == pytest.approx(((1 + 2 / 3) / 2 + 1.0) / 2)
    assert metrics["balanced_accuracy"] == pytest.approx((0.5 + 1.0) / 2)


@pytest.mark.parametrize(
    ("labels", "scores", "task"),
    [(np.zeros(3, int), np.zeros((4, 2)), "single_label"), (np.zeros((4, 3)), np.zeros((4, 2)), "multi_label")],
)
def test_shapes_that_do_not_fit_are_refused(labels: np.ndarray, scores: np.ndarray, task: str) -> None:
    with pytest.raises(ValueError, match=r"labels"):
        classification_metrics(labels, scores, task)


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_classes_of_few_images_do_not_count_in_the_supported_auc(task: str) -> None:
    labels = np.repeat([0, 1, 2], [20, MIN_SUPPORT, MIN_SUPPORT - 1])
    scores = np.random.default_rng(0).dirichlet(np.ones(3), len(labels))
    hot = np.eye(3, dtype=bool)[labels]
    given = labels if task == "single_label" else hot.astype(int)
    aucs = class_auc(hot, scores)
    assert supported_auc(given, scores, task) == pytest.approx(np.mean(aucs[:2]))
    assert classification_metrics(given, scores, task)["auc"] == pytest.approx(np.mean(aucs))
    assert math.isnan(supported_auc(given[:3], scores[:3], task))
    assert math.isnan(supported_auc(given, np.where(hot, np.nan, scores), task))
