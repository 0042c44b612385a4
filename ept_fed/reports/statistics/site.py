"""All numbers of a site's report, computed only from its predictions: metrics, intervals, differences, curves, sets."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ept_fed.evaluation.bootstrap import (
    Difference,
    Interval,
    assess_difference,
    measure,
    resample,
    summarise,
    summarise_share,
)
from ept_fed.evaluation.calibration import ReliabilityBin, reliability_curve
from ept_fed.evaluation.conformal import ConformalResult
from ept_fed.evaluation.metrics import Array
from ept_fed.evaluation.operating_point import confusion_matrix, roc_points
from ept_fed.evaluation.weighted_metrics import (
    Metric,
    Sample,
    class_averages,
    class_ranks,
    decisions,
    image_means,
    rates,
)
from ept_fed.reports.run.read_predictions import SitePredictions
from ept_fed.reports.run.settings import BASELINE
from ept_fed.reports.statistics.chosen_on_validation import (
    Calibration,
    assess_conformal,
    calibrate,
    choose_thresholds,
    count_positives,
)

__all__ = ["METRICS", "ClassRow", "MetricRow", "OperatingPoint", "Statistics", "analyse"]

METRICS = {
    "auc": True,
    "average_precision": True,
    "accuracy": True,
    "balanced_accuracy": True,
    "loss": False,
    "brier": False,
}
"""Overall metrics in the order of the table, and whether higher is better."""

_CLASS_VALUES = ("auc", "average_precision", "sensitivity", "specificity", "chosen_sensitivity", "chosen_specificity")


@dataclass(frozen=True)
class MetricRow:
    """One metric: its value in each setting, and the difference of each other setting from the local model."""

    metric: str
    values: Mapping[str, Interval]
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class ClassRow:
    """One class against the rest: counts on the test split, and setting -> metric -> interval.

    Sensitivity and specificity are those of the most probable class (multi-label: probability of at least 0.5).
    """

    name: str
    images: int
    cases: int
    values: Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True)
class OperatingPoint:
    """A class's threshold, chosen on `validation_positives` validation images, and its results on the test images."""

    name: str
    threshold: float
    validation_positives: int
    sensitivity: Interval
    specificity: Interval


@dataclass(frozen=True)
class Statistics:
    """All measurements on one site's test images; mappings are by setting.

    Attributes:
        images: number of test images.
        cases: number of groups, for example patients or lesions.
        metrics: one row per overall metric.
        classes: one row per class.
        roc: for each class, points (false positive rate, sensitivity) from (0, 0) to (1, 1); empty if undefined.
        reliability: bins of the reliability chart.
        confusion: [true class][predicted class] number of images; single_label only.
        calibration: calibration errors, and the temperature from the validation images.
        operating: one operating point per class; requires validation images.
        conformal: results of the prediction sets; requires single_label and validation images.
    """

    images: int
    cases: int
    metrics: tuple[MetricRow, ...]
    classes: tuple[ClassRow, ...]
    roc: Mapping[str, tuple[tuple[tuple[float, float], ...], ...]]
    reliability: Mapping[str, tuple[ReliabilityBin, ...]]
    confusion: Mapping[str, tuple[tuple[int, ...], ...]]
    calibration: Mapping[str, Calibration]
    operating: Mapping[str, tuple[OperatingPoint, ...]]
    conformal: Mapping[str, ConformalResult]


def analyse(
    predictions: SitePredictions,
    classes: Sequence[str],
    task: str,
    rng: np.random.Generator,
    *,
    sensitivity: float = 0.9,
    draws: int = 1000,
) -> Statistics:
    """Return all measurements on one site's predictions.

    Args:
        predictions: test images in every setting; thresholds, temperature and sets also need validation images.
        classes: names of the classes, in the order of the scores.
        task: single_label or multi_label.
        rng: random generator of the bootstrap.
        sensitivity: target sensitivity of the operating points.
        draws: number of bootstrap resamples.
    """
    test, validation = predictions.test, predictions.validation
    settings = tuple(test.scores)
    thresholds = {name: choose_thresholds(validation, name, task, sensitivity, len(classes)) for name in settings}
    metrics = [_all_values(Sample.of(test.labels, test.scores[s], task), thresholds[s]) for s in settings]

    def every_setting(weights: Array) -> Array:
        return np.stack([metric(weights) for metric in metrics], axis=1)

    C, n = len(classes), len(test.images)
    width = len(METRICS) + len(_CLASS_VALUES) * C
    if n and settings:
        point, resampled = measure(every_setting, n), resample(every_setting, test.groups, rng, draws)
    else:
        point, resampled = np.full((len(settings), width), np.nan), np.full((1, len(settings), width), np.nan)
    rows, by_class = _overall(point, resampled, settings, len(set(test.groups))), {}
    hot = Sample.of(test.labels, np.zeros((n, C)), task).hot
    cases = [_count_cases(test.groups, hot[:, c]) for c in range(C)]
    others = [_count_cases(test.groups, ~hot[:, c]) for c in range(C)]
    for (place, setting), (k, name), c in itertools.product(enumerate(settings), enumerate(_CLASS_VALUES), range(C)):
        column = len(METRICS) + k * C + c
        value, values = float(point[place, column]), resampled[:, place, column]
        by_class[setting, name, c] = _summarise_class(name, value, values, cases[c], others[c])
    return Statistics(
        images=n,
        cases=len(set(test.groups)),
        metrics=rows,
        classes=tuple(
            ClassRow(
                classes[c],
                int(hot[:, c].sum()),
                cases[c],
                {s: {name: by_class[s, name, c] for name in _CLASS_VALUES[:4]} for s in settings},
            )
            for c in range(C)
        ),
        roc={s: tuple(roc_points(hot[:, c], test.scores[s][:, c]) for c in range(C)) for s in settings},
        reliability={s: reliability_curve(test.labels, test.scores[s], task, _chart_bins(n)) for s in settings},
        confusion={
            s: tuple(map(tuple, confusion_matrix(test.labels, test.scores[s].argmax(axis=1), C).tolist()))
            for s in settings
            if n and task == "single_label"
        },
        calibration={s: calibrate(test, validation, s, task) for s in settings},
        operating={
            s: tuple(
                OperatingPoint(
                    classes[c],
                    float(thresholds[s][c]),
                    count_positives(validation, task, c),
                    by_class[s, "chosen_sensitivity", c],
                    by_class[s, "chosen_specificity", c],
                )
                for c in range(C)
            )
            for s in settings
            if validation is not None
        },
        conformal={
            s: assess_conformal(test, validation, s)
            for s in settings
            if validation is not None and task == "single_label" and n
        },
    )


def _all_values(sample: Sample, thresholds: Array) -> Metric:
    """Return the metric (b, 6 + 6 C): `METRICS`, then `_CLASS_VALUES` for each class."""
    ranks, means = class_ranks(sample), image_means(sample)
    decided, chosen = rates(sample, decisions(sample)), rates(sample, sample.scores >= thresholds[None, :])

    def metric(weights: Array) -> Array:
        ranked, rated, mean = ranks(weights), decided(weights), means(weights)
        balanced = class_averages(rated.mean(axis=1) if sample.task == "multi_label" else rated[:, 0])
        macro = class_averages(ranked)
        overall = [macro[:, 0], macro[:, 1], mean[:, 0], balanced, mean[:, 1], mean[:, 2]]
        at_threshold = np.where(np.isnan(thresholds), np.nan, chosen(weights))
        by_class = [part.reshape(len(weights), -1) for part in (ranked, rated, at_threshold)]
        return np.concatenate([np.stack(overall, axis=1), *by_class], axis=1)

    return metric


def _summarise_class(name: str, value: float, draws: Array, cases: int, others: int) -> Interval:
    if name.endswith("sensitivity"):
        return summarise_share(value, draws, cases)
    if name.endswith("specificity"):
        return summarise_share(value, draws, others)
    interval = summarise(value, draws, min(cases, others))
    # A perfectly ranked class is perfect in every resample, but an interval of zero width does not mean certainty.
    return Interval(value, np.nan, np.nan) if interval.low == interval.high else interval


def _overall(point: Array, resampled: Array, settings: Sequence[str], cases: int) -> tuple[MetricRow, ...]:
    rows = []
    base = settings.index(BASELINE) if BASELINE in settings else None
    for k, (name, higher) in enumerate(METRICS.items()):
        values = {s: summarise(float(point[i, k]), resampled[:, i, k], cases) for i, s in enumerate(settings)}
        differences = {}
        for i, setting in enumerate(settings):
            if base is not None and i != base:
                gap = resampled[:, i, k] - resampled[:, base, k]
                value = float(point[i, k] - point[base, k])
                differences[setting] = assess_difference(value, gap, cases, higher_is_better=higher)
        rows.append(MetricRow(name, values, differences))
    return tuple(rows)


def _chart_bins(images: int) -> int:
    # A point of fewer than about 40 images is too noisy for the chart; the error is computed with 15 bins.
    return max(3, min(10, images // 40))


def _count_cases(groups: Sequence[str], chosen: Array) -> int:
    return len({group for group, is_chosen in zip(groups, chosen, strict=True) if is_chosen})
