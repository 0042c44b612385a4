"""Every metric of the reports against scikit-learn and torchmetrics, on random cases in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    log_loss,
    recall_score,
    roc_auc_score,
)

from ept_fed.evaluation.calibration import brier_score
from ept_fed.evaluation.metrics import classification_metrics
from ept_fed.evaluation.operating_point import confusion_matrix
from ept_fed.evaluation.weighted_metrics import Sample, class_averages, class_ranks, decisions, image_means, rates
from tests.effort import examples

cases = given(n=st.integers(20, 300), C=st.integers(2, 7), seed=st.integers(0, 2**32), ties=st.booleans())


def draw(n: int, C: int, seed: int, *, ties: bool, multi_label: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels and probabilities; every class has at least one image with it and one without it.

    With `ties`, the probabilities are in steps of a tenth before scaling.
    """
    rng = np.random.default_rng(seed)
    scores = rng.random((n, C))
    scores = np.round(scores, 1) + 0.05 if ties else scores
    if multi_label:
        labels = (rng.random((n, C)) < 0.4).astype(np.int64)
        labels[0], labels[1] = 0, 1
        return labels, scores / 1.1
    labels = rng.integers(0, C, n)
    labels[:C] = np.arange(C)
    return labels, scores / scores.sum(1, keepdims=True)


@examples(15)
@cases
def test_single_label_metrics_equal_scikit_learns(n: int, C: int, seed: int, ties: bool) -> None:
    labels, scores = draw(n, C, seed, ties=ties)
    hot, top = np.eye(C)[labels], scores.argmax(1)
    want = {
        "auc": np.mean([roc_auc_score(hot[:, c], scores[:, c]) for c in range(C)]),
        "average_precision": np.mean([average_precision_score(hot[:, c], scores[:, c]) for c in range(C)]),
        "accuracy": accuracy_score(labels, top),
        "balanced_accuracy": balanced_accuracy_score(labels, top),
        "loss": log_loss(labels, scores, labels=range(C)),
    }
    have = classification_metrics(labels, scores, "single_label")
    for name, value in want.items():
        assert have[name] == pytest.approx(value, abs=1e-9), name
    brier = sum(brier_score_loss(hot[:, c], scores[:, c]) for c in range(C))
    assert brier_score(labels, scores, "single_label") == pytest.approx(brier, abs=1e-9)


@examples(10)
@cases
def test_multi_label_metrics_equal_scikit_learns(n: int, C: int, seed: int, ties: bool) -> None:
    labels, scores = draw(n, C, seed, ties=ties, multi_label=True)
    have = classification_metrics(labels, scores, "multi_label")
    assert have["auc"] == pytest.approx(roc_auc_score(labels, scores, average="macro"), abs=1e-9)
    assert have["average_precision"] == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    assert have["accuracy"] == pytest.approx(accuracy_score(labels.ravel(), scores.ravel() >= 0.5), abs=1e-9)
    losses = [log_loss(labels[:, c], scores[:, c], labels=[0, 1]) for c in range(C)]
    assert have["loss"] == pytest.approx(np.mean(losses), abs=1e-9)
    brier = [brier_score_loss(labels[:, c], scores[:, c]) for c in range(C)]
    assert brier_score(labels, scores, "multi_label") == pytest.approx(np.mean(brier), abs=1e-9)


@examples(10)
@cases
def test_bootstrap_metrics_equal_scikit_learns_with_sample_weights(n: int, C: int, seed: int, ties: bool) -> None:
    labels, scores = draw(n, C, seed, ties=ties)
    weights = np.random.default_rng(seed + 1).integers(1, 4, n).astype(float)
    sample = Sample.of(labels, scores, "single_label")
    hot, decided = sample.hot, decisions(sample)
    ranks = class_ranks(sample)(weights[None])[0]
    rate = rates(sample, decided)(weights[None])[0]
    for c in range(C):
        weighted = {"sample_weight": weights}
        assert ranks[0, c] == pytest.approx(roc_auc_score(hot[:, c], scores[:, c], **weighted), abs=1e-9)
        assert ranks[1, c] == pytest.approx(average_precision_score(hot[:, c], scores[:, c], **weighted), abs=1e-9)
        assert rate[0, c] == pytest.approx(recall_score(hot[:, c], decided[:, c], **weighted), abs=1e-9)
        assert rate[1, c] == pytest.approx(recall_score(~hot[:, c], ~decided[:, c], **weighted), abs=1e-9)
    means = image_means(sample)(weights[None])[0]
    assert means[0] == pytest.approx(accuracy_score(labels, scores.argmax(1), sample_weight=weights), abs=1e-9)
    assert means[1] == pytest.approx(log_loss(labels, scores, sample_weight=weights, labels=range(C)), abs=1e-9)
    assert class_averages(rate[None, 0])[0] == pytest.approx(
        balanced_accuracy_score(labels, scores.argmax(1), sample_weight=weights), abs=1e-9
    )


@examples(10)
@cases
def test_single_label_metrics_equal_torchmetrics(n: int, C: int, seed: int, ties: bool) -> None:
    from torchmetrics.functional import classification as theirs

    labels, scores = draw(n, C, seed, ties=ties)
    target, preds = torch.from_numpy(labels), torch.from_numpy(scores)
    have = classification_metrics(labels, scores, "single_label")
    macro: dict[str, Any] = {"num_classes": C, "average": "macro"}
    with in_float64():
        want = {
            "auc": theirs.multiclass_auroc(preds, target, **macro),
            "average_precision": theirs.multiclass_average_precision(preds, target, **macro),
            "balanced_accuracy": theirs.multiclass_accuracy(preds, target, **macro),
            "accuracy": theirs.multiclass_accuracy(preds, target, num_classes=C, average="micro"),
        }
        confusion = theirs.multiclass_confusion_matrix(preds, target, num_classes=C)
    for name, value in want.items():
        assert have[name] == pytest.approx(value.item(), abs=1e-9), name
    assert np.array_equal(confusion_matrix(labels, scores.argmax(1), C), confusion.numpy())


@examples(10)
@cases
def test_multi_label_metrics_equal_torchmetrics(n: int, C: int, seed: int, ties: bool) -> None:
    from torchmetrics.functional import classification as theirs

    labels, scores = draw(n, C, seed, ties=ties, multi_label=True)
    target, preds = torch.from_numpy(labels), torch.from_numpy(scores)
    have = classification_metrics(labels, scores, "multi_label")
    with in_float64():
        auc = theirs.multilabel_auroc(preds, target, num_labels=C)
        precision = theirs.multilabel_average_precision(preds, target, num_labels=C)
    assert have["auc"] == pytest.approx(auc.item(), abs=1e-9)
    assert have["average_precision"] == pytest.approx(precision.item(), abs=1e-9)


@contextmanager
def in_float64() -> Iterator[None]:
    """Make torchmetrics convert its counts to float64; its float32 is only exact to 1e-7."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.Tensor, "float", torch.Tensor.double)
            yield
    finally:
        torch.set_default_dtype(before)
