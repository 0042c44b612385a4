"""Classification metrics of arrays; an undefined metric is NaN, and `classes_present` shows the reason."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, average_precision_score, recall_score, roc_auc_score

__all__ = ["MIN_SUPPORT", "Array", "class_auc", "classification_metrics", "supported_auc"]

Array = npt.NDArray[Any]
MIN_SUPPORT = 5


def classification_metrics(labels: Array, scores: Array, task: str) -> Mapping[str, float]:
    """Return loss, auc, accuracy, balanced_accuracy, average_precision and classes_present.

    Args:
        labels: (n,) class indices, or (n, C) in {0, 1} for multi-label.
        scores: (n, C) probabilities; rows sum to one for single-label.
        task: single_label or multi_label.

    Returns:
        * loss: negative log likelihood per image (single) or per image and class (multi);
        * auc: mean one-vs-rest area under the ROC curve over the classes for which it is defined, that is, with at
          least one image that has the class and one that does not;
        * accuracy: share of images whose top class is correct (multi: share of correct 0/1 decisions at 0.5);
        * balanced_accuracy: mean recall over the present classes (multi: mean of sensitivity and specificity, averaged
          over the classes for which both are defined);
        * average_precision: mean over the present classes (the paper's mAP for multi-label);
        * classes_present: number of classes with at least one image.
        All values except this count are NaN if there is no image, or if a score is not finite (a diverged model).
    """
    n, C = scores.shape
    if len(labels) != n:
        raise ValueError(f"{len(labels)} labels for {n} rows of scores")
    hot = labels.astype(bool) if task == "multi_label" else np.arange(C)[None, :] == labels[:, None]
    if hot.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} do not fit scores {scores.shape} for {task}")
    present = hot.any(axis=0)
    metrics = {"classes_present": float(present.sum())}
    if n == 0 or not np.isfinite(scores).all():
        undefined = ("loss", "auc", "accuracy", "balanced_accuracy", "average_precision")
        return metrics | dict.fromkeys(undefined, float("nan"))
    clipped = np.clip(scores.astype(np.float64), 1e-12, 1.0)
    if task == "single_label":
        metrics["loss"] = float(-np.log(clipped[np.arange(n), labels]).mean())
        predicted = scores.argmax(axis=1)
        metrics["accuracy"] = float(accuracy_score(labels, predicted))
        recalls = recall_score(labels, predicted, labels=np.flatnonzero(present), average=None, zero_division=0.0)
        metrics["balanced_accuracy"] = float(np.mean(recalls))
    else:
        complement = np.clip(1.0 - scores.astype(np.float64), 1e-12, 1.0)
        metrics["loss"] = float(-np.where(hot, np.log(clipped), np.log(complement)).mean())
        metrics["accuracy"] = float((hot == (scores >= 0.5)).mean())
        metrics["balanced_accuracy"] = _mean(_balanced(hot[:, c], scores[:, c] >= 0.5) for c in range(C))
    metrics["auc"] = _mean(class_auc(hot, scores))
    metrics["average_precision"] = _mean(
        float(average_precision_score(hot[:, c], scores[:, c])) for c in np.flatnonzero(present)
    )
    return metrics


def supported_auc(labels: Array, scores: Array, task: str) -> float:
    """Return the mean one-vs-rest AUC over the classes with at least `MIN_SUPPORT` images with and without the class.

    The AUC of a class with one image is the rank of this image. Where test images are few, such classes move the macro
    AUC more than any difference between models. NaN if there is no such class, or if a score is not finite.

    Args:
        labels: as for `classification_metrics`.
        scores: as there.
        task: as there.
    """
    hot = labels.astype(bool) if task == "multi_label" else np.arange(scores.shape[1])[None, :] == labels[:, None]
    if not np.isfinite(scores).all():
        return float("nan")
    support = np.minimum(hot.sum(axis=0), (~hot).sum(axis=0))
    kept = support >= MIN_SUPPORT
    return _mean(class_auc(hot[:, kept], scores[:, kept]))


def class_auc(hot: Array, scores: Array) -> list[float]:
    """Return the one-vs-rest AUC of each class; NaN if no image or every image has the class.

    Args:
        hot: (n, C) bool, the classes of each image.
        scores: (n, C).
    """
    return [
        float(roc_auc_score(hot[:, c], scores[:, c])) if hot[:, c].any() and not hot[:, c].all() else float("nan")
        for c in range(hot.shape[1])
    ]


def _balanced(truth: Array, decision: Array) -> float:
    if not truth.any() or truth.all():
        return float("nan")
    return float((decision[truth].mean() + (~decision[~truth]).mean()) / 2)


def _mean(values: Any) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
