"""The summary tables of a benchmark: mean and standard deviation over runs, and paired differences from a reference.

These are pure functions of the rows of results.csv, which has one row per cell and site.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from ept_fed.evaluation.convergence import TrainingState

__all__ = [
    "POOLED_METRICS",
    "STILL_IMPROVING",
    "SUMMARY_METRICS",
    "choose_home",
    "compare_means_with_local",
    "compare_with_local",
    "summarise",
]

# A site's model on the test images of all sites together.
POOLED_METRICS = ("pooled_auc", "pooled_balanced_accuracy")

SUMMARY_METRICS = ("auc", "supported_auc", "accuracy", "balanced_accuracy", "average_precision", *POOLED_METRICS)

STILL_IMPROVING: TrainingState = "still improving"

_Group = tuple[str, Any, str]
_Run = tuple[Any, int]


def summarise(rows: Sequence[Mapping[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Return one row per method, shots, setting and metric.

    The value of a cell is its unweighted mean over sites. A run is a pair of sampling and seed. Each difference
    compares a cell with the reference's cell of the same run, shots and setting, so effects common to both cancel.

    Args:
        rows: with `method`, `shots`, `sampling`, `seed`, `setting`, `site`, `bytes_per_round`, `training` and
            `SUMMARY_METRICS`.
        reference: a method of the rows.

    Returns:
        rows with `mean` and `sd` over `runs` cells (sd is NaN for one cell), `difference` and `difference_sd` over
        `pairs` of cells, and `low` and `high`, Student's 95 % interval of the difference (NaN for one pair). A cell
        whose metric is undefined at every site is left out of both. `improving` counts the sites, over all runs, whose
        training was still improving when it stopped.
    """
    traffic: dict[_Group, float] = {}
    sites: dict[_Group, dict[_Run, list[Mapping[str, Any]]]] = {}
    for row in rows:
        group = (row["method"], row["shots"], row["setting"])
        traffic[group] = row["bytes_per_round"]
        sites.setdefault(group, {}).setdefault((row["sampling"], row["seed"]), []).append(row)
    summary = []
    for group, runs in sites.items():
        method, shots, setting = group
        for metric in SUMMARY_METRICS:
            own = _average_sites(runs, metric)
            theirs = _average_sites(sites.get((reference, shots, setting), {}), metric)
            differences = [value - theirs[run] for run, value in own.items() if run in theirs]
            mean, sd = _mean_and_sd(list(own.values()))
            difference, difference_sd = _mean_and_sd(differences)
            _, half = _mean_and_half_interval(differences)
            summary.append(
                {
                    "method": method,
                    "shots": shots,
                    "setting": setting,
                    "bytes_per_round": traffic[group],
                    "metric": metric,
                    "mean": mean,
                    "sd": sd,
                    "runs": len(own),
                    "difference": difference,
                    "difference_sd": difference_sd,
                    "low": difference - half,
                    "high": difference + half,
                    "pairs": len(differences),
                    "improving": sum(
                        row["training"] == STILL_IMPROVING for own_rows in runs.values() for row in own_rows
                    ),
                }
            )
    return summary


def choose_home(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows with the best model that each site can train alone as the local model of every method.

    A site chooses between its local models by their AUC on its own validation images; of equal ones, the first is used.
    If one of a run's sites has no such model, the rows are returned as they are.

    Args:
        rows: as for `summarise`, with `validation_auc`, and with `home`: whether a local model is one to choose from.
    """
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in rows:
        if row["setting"] != "local" or not row["home"]:
            continue
        place = _place(row)
        if place not in found or _known(row["validation_auc"]) > _known(found[place]["validation_auc"]):
            found[place] = row
    kept = [row for row in rows if row["setting"] != "local"]
    if not found or any(_place(row) not in found for row in kept):
        return list(rows)
    methods = {(row["method"], *_place(row)): row for row in kept}
    home = [{**found[_place(row)], "method": row["method"]} for row in methods.values()]
    return [*home, *kept]


def compare_with_local(rows: Sequence[Mapping[str, Any]], metric: str = "auc") -> list[dict[str, Any]]:
    """Return each site's difference from local training: one row per method, shots, setting and site.

    Within each run, a setting is compared with the local model of the same method. The interval is Student's over runs,
    so it covers the variation of samplings and seeds at this site, and requires at least two runs.

    Args:
        rows: as for `summarise`.
        metric: one of `SUMMARY_METRICS`.

    Returns:
        rows with `local`, the mean over runs of local training, `difference`, and `low` and `high`, its 95 % interval
        (NaN for one run), over the `runs` in which both are defined. A method without the setting `local` has no rows.
    """
    values = {
        (row["method"], row["shots"], row["site"], row["setting"], (row["sampling"], row["seed"])): float(row[metric])
        for row in rows
    }
    runs: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for (method, shots, site, setting, run), value in values.items():
        local = values.get((method, shots, site, "local", run))
        if setting != "local" and local is not None:
            pairs = runs.setdefault((method, shots, setting, site), [])
            if not np.isnan(local - value):
                pairs.append((local, value - local))
    compared = []
    for (method, shots, setting, site), pairs in runs.items():
        mean, half = _mean_and_half_interval([difference for _, difference in pairs])
        compared.append(
            {
                "method": method,
                "shots": shots,
                "setting": setting,
                "site": site,
                "metric": metric,
                "local": _mean_and_sd([local for local, _ in pairs])[0],
                "difference": mean,
                "low": mean - half,
                "high": mean + half,
                "runs": len(pairs),
            }
        )
    return compared


def compare_means_with_local(rows: Sequence[Mapping[str, Any]], metric: str = "auc") -> list[dict[str, Any]]:
    """Return the mean difference over sites from local training: one row per method, shots and setting.

    Within a run, a site is included if its metric is defined both for local training and for the setting. The interval
    is Student's over runs, as in `compare_with_local`, so it is valid only for these sites.

    Args:
        rows: as for `summarise`.
        metric: one of `SUMMARY_METRICS`.

    Returns:
        rows with `local` and `difference`, means over `runs`, `low` and `high`, the difference's 95 % interval (NaN for
        one run), the number of `sites`, and `helped`, the number of sites whose mean difference over runs is above 0. A
        method without the setting `local` has no rows.
    """
    values = {
        (row["method"], row["shots"], row["setting"], (row["sampling"], row["seed"]), row["site"]): float(row[metric])
        for row in rows
    }
    pairs: dict[tuple[Any, ...], dict[_Run, dict[str, tuple[float, float]]]] = {}
    for (method, shots, setting, run, site), value in values.items():
        local = values.get((method, shots, "local", run, site))
        if setting != "local" and local is not None and not np.isnan(local - value):
            group = pairs.setdefault((method, shots, setting), {})
            group.setdefault(run, {})[site] = (local, value - local)
    compared = []
    for (method, shots, setting), runs in pairs.items():
        means = [np.mean(list(sites.values()), axis=0) for sites in runs.values()]
        mean, half = _mean_and_half_interval([float(difference) for _, difference in means])
        gains: dict[str, list[float]] = {}
        for sites in runs.values():
            for site, (_, difference) in sites.items():
                gains.setdefault(site, []).append(difference)
        compared.append(
            {
                "method": method,
                "shots": shots,
                "setting": setting,
                "metric": metric,
                "local": float(np.mean([local for local, _ in means])),
                "difference": mean,
                "low": mean - half,
                "high": mean + half,
                "runs": len(runs),
                "sites": len(gains),
                "helped": sum(float(np.mean(own)) > 0 for own in gains.values()),
            }
        )
    return compared


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["shots"], row["sampling"], row["seed"], row["site"]


def _known(value: float) -> float:
    return -np.inf if np.isnan(value) else value


def _average_sites(runs: Mapping[_Run, Sequence[Mapping[str, Any]]], metric: str) -> dict[_Run, float]:
    means = {}
    for run, rows in runs.items():
        values = [float(row[metric]) for row in rows if not np.isnan(row[metric])]
        if values:
            means[run] = float(np.mean(values))
    return means


def _mean_and_half_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and half the length of Student's 95 % interval around it; NaN if there are too few values."""
    mean, sd = _mean_and_sd(values)
    return mean, float(stats.t.ppf(0.975, len(values) - 1)) * sd / len(values) ** 0.5 if len(values) > 1 else sd


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; NaN if there are too few values."""
    mean = float(np.mean(values)) if values else float("nan")
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
