"""AUC and accuracy with intervals on subgroups of one site's test images; small cells are hidden."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ept_fed.evaluation.bootstrap import DRAWS, Interval, measure, resample, summarise
from ept_fed.evaluation.metrics import Array
from ept_fed.evaluation.subgroups import UNSTATED, band_values, choose_hidden
from ept_fed.evaluation.weighted_metrics import Metric, Sample, class_averages, class_ranks, image_means
from ept_fed.reports.run.read_predictions import PredictionTable
from ept_fed.reports.run.settings import compared_settings

__all__ = ["SUBGROUP_METRICS", "SubgroupCell", "SubgroupTable", "analyse_subgroups"]

SUBGROUP_METRICS = ("auc", "accuracy")


@dataclass(frozen=True)
class SubgroupCell:
    """The test images with one value, or within one band of values, of a column.

    Attributes:
        value: name of the value or band.
        shown: False if the cell is hidden; then the counts are None and there are no values.
        images: number of test images.
        cases: number of groups, for example patients or lesions.
        classes: number of classes that some images in the cell have and others do not; the AUC is the mean over them.
        values: setting -> metric -> value with its 95 % interval.
    """

    value: str
    shown: bool
    images: int | None
    cases: int | None
    classes: int | None
    values: Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True)
class SubgroupTable:
    """One column of the manifest; its cells are sorted by name, numbers by size, with `UNSTATED` last."""

    column: str
    cells: tuple[SubgroupCell, ...]


def analyse_subgroups(
    test: PredictionTable, task: str, rng: np.random.Generator, draws: int = DRAWS
) -> tuple[SubgroupTable, ...]:
    """Return the measurements of all sufficiently large cells of all subgroup columns.

    Args:
        test: a site's test images.
        task: single_label or multi_label.
        rng: random generator of the bootstrap over whole groups within each cell.
        draws: number of bootstrap resamples.
    """
    if not test.scores or not test.images:
        return ()
    return tuple(_tabulate(column, values, test, task, rng, draws) for column, values in test.subgroups.items())


def _tabulate(
    column: str, values: Sequence[str], test: PredictionTable, task: str, rng: np.random.Generator, draws: int
) -> SubgroupTable:
    cells = np.array(band_values(values), dtype=object)
    groups = np.array(test.groups, dtype=object)
    names = sorted(set(cells), key=_order)
    cases = {name: len(set(groups[cells == name])) for name in names}
    hidden = choose_hidden(cases)
    rows = []
    for name in names:
        if name in hidden:
            rows.append(SubgroupCell(name, False, None, None, None, {}))
            continue
        inside = cells == name
        hot = Sample.of(test.labels[inside], next(iter(test.scores.values()))[inside], task).hot
        classes = int((hot.any(axis=0) & ~hot.all(axis=0)).sum())
        measured = _measure_cell(test, inside, task, rng, draws)
        rows.append(SubgroupCell(name, True, int(inside.sum()), cases[name], classes, measured))
    return SubgroupTable(column, tuple(rows))


def _measure_cell(
    test: PredictionTable, inside: Array, task: str, rng: np.random.Generator, draws: int
) -> dict[str, dict[str, Interval]]:
    settings = [setting for setting in compared_settings(test.scores) if setting in test.scores]
    groups = [group for group, chosen in zip(test.groups, inside, strict=True) if chosen]
    metrics = [_metric(Sample.of(test.labels[inside], test.scores[s][inside], task)) for s in settings]

    def every_setting(weights: Array) -> Array:
        return np.stack([metric(weights) for metric in metrics], axis=1)

    point, resampled = measure(every_setting, len(groups)), resample(every_setting, groups, rng, draws)
    cases = len(set(groups))
    return {
        setting: {
            name: summarise(float(point[i, k]), resampled[:, i, k], cases) for k, name in enumerate(SUBGROUP_METRICS)
        }
        for i, setting in enumerate(settings)
    }


def _metric(sample: Sample) -> Metric:
    """Return the metric (b, 2): macro AUC over the defined classes, and accuracy."""
    ranks, means = class_ranks(sample), image_means(sample)

    def metric(weights: Array) -> Array:
        return np.stack([class_averages(ranks(weights)[:, 0]), means(weights)[:, 0]], axis=1)

    return metric


def _order(name: str) -> tuple[bool, float, str]:
    number = re.match(r"-?[0-9.]+(e[+-]?[0-9]+)?", name)
    return name == UNSTATED, float(number.group()) if number else math.inf, name
