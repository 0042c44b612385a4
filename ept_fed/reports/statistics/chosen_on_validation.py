"""Thresholds, temperature and prediction sets that are chosen on validation images and evaluated on test images."""

from dataclasses import dataclass

import numpy as np

from ept_fed.evaluation.bootstrap import measure
from ept_fed.evaluation.calibration import apply_temperature, calibration_error, fit_temperature, reliability_curve
from ept_fed.evaluation.conformal import ConformalResult, assess_sets, class_thresholds, prediction_sets
from ept_fed.evaluation.metrics import Array
from ept_fed.evaluation.operating_point import choose_threshold
from ept_fed.evaluation.weighted_metrics import Sample, image_means
from ept_fed.reports.run.read_predictions import PredictionTable

__all__ = ["ALPHA", "Calibration", "assess_conformal", "calibrate", "choose_thresholds", "count_positives"]

ALPHA = 0.1


@dataclass(frozen=True)
class Calibration:
    """Calibration of the probabilities: error before and after temperature scaling, and log loss after it.

    The temperature is fitted on the validation split. Without it, all values except `error` are NaN.
    """

    error: float
    temperature: float
    error_after: float
    loss_after: float


def choose_thresholds(validation: PredictionTable | None, setting: str, task: str, target: float, C: int) -> Array:
    """Return the thresholds (C,) of a setting that reach the target sensitivity; NaN without validation positives."""
    if validation is None:
        return np.full(C, np.nan)
    sample = Sample.of(validation.labels, validation.scores[setting], task)
    return np.array([choose_threshold(sample.hot[:, c], sample.scores[:, c], target) for c in range(C)])


def count_positives(validation: PredictionTable | None, task: str, c: int) -> int:
    """Return the number of validation images of class c."""
    if validation is None:
        return 0
    return int(validation.labels[:, c].sum() if task == "multi_label" else (validation.labels == c).sum())


def calibrate(test: PredictionTable, validation: PredictionTable | None, setting: str, task: str) -> Calibration:
    """Return the calibration on test images, before and after scaling with the validation images' temperature."""
    scores = test.scores[setting]
    error = calibration_error(reliability_curve(test.labels, scores, task))
    if validation is None or not len(test.labels):
        return Calibration(error, float("nan"), float("nan"), float("nan"))
    temperature = fit_temperature(validation.labels, validation.scores[setting], task)
    mended = apply_temperature(scores, temperature, task)
    after = calibration_error(reliability_curve(test.labels, mended, task))
    loss = measure(image_means(Sample.of(test.labels, mended, task)), len(test.labels))[1]
    return Calibration(error, temperature, after, float(loss))


def assess_conformal(test: PredictionTable, validation: PredictionTable, setting: str) -> ConformalResult:
    """Return the evaluation on test images of prediction sets with thresholds from the validation images."""
    thresholds = class_thresholds(validation.labels, validation.scores[setting], ALPHA)
    return assess_sets(test.labels, prediction_sets(test.scores[setting], thresholds), thresholds, ALPHA)
