"""A benchmark's means, and its differences that are paired run by run."""

import math
from typing import Any

import pytest

from ept_fed.evaluation.benchmark_summary import (
    SUMMARY_METRICS,
    compare_means_with_local,
    compare_with_local,
    summarise,
)


def row(method: str, seed: int, site: str, value: float, setting: str = "federated") -> dict[str, Any]:
    run = {"method": method, "shots": 5, "sampling": None, "seed": seed, "setting": setting}
    told = {"bytes_per_round": 10, "training": "ended", "home": False, "validation_auc": value}
    return {**run, "site": site, **told, **dict.fromkeys(SUMMARY_METRICS, value)}


def test_a_sites_gain_is_measured_against_its_own_local_model_run_by_run() -> None:
    rows = [row("ept", seed, "a", 0.5 + seed / 10, "local") for seed in (0, 1, 2)]
    rows += [row("ept", seed, "a", 0.5 + seed / 10 + gain) for seed, gain in ((0, 0.1), (1, 0.2), (2, 0.3), (3, 0.9))]
    rows += [row("ept", 0, "b", float("nan"), "local"), row("ept", 0, "b", 0.5), row("vpt", 0, "a", 0.9)]
    gained, nothing = compare_with_local(rows)
    assert (gained["site"], gained["setting"], gained["runs"], gained["local"]) == (
        "a",
        "federated",
        3,
        pytest.approx(0.6),
    )
    # Student's 97.5 % quantile for two degrees of freedom is 4.303; the standard deviation is 0.1.
    assert (gained["low"], gained["high"]) == (
        pytest.approx(0.2 - 4.303 * 0.1 / 3**0.5, abs=1e-4), pytest.approx(0.2 + 4.303 * 0.1 / 3**0.5, abs=1e-4)
    )  # fmt: skip
    assert (nothing["site"], nothing["runs"]) == ("b", 0)
    assert math.isnan(nothing["difference"])


def test_the_mean_gain_is_over_sites_within_a_run_and_its_interval_over_runs() -> None:
    gains = {0: {"a": 0.1, "b": -0.3}, 1: {"a": 0.2, "b": 0.0}, 2: {"a": 0.3, "b": float("nan")}}
    rows = [row("ept", seed, site, 0.5, "local") for seed in gains for site in ("a", "b")]
    rows += [row("ept", seed, site, 0.5 + gain) for seed, own in gains.items() for site, gain in own.items()]
    rows += [row("ept", 3, "a", 0.9), row("linear", 0, "a", 0.9)]
    (gained,) = compare_means_with_local(rows)
    assert (gained["method"], gained["setting"], gained["runs"]) == ("ept", "federated", 3)
    assert (gained["sites"], gained["helped"]) == (2, 1)
    # Means of the runs: -0.1, 0.1 and 0.3 (site b is undefined there); their standard deviation is 0.2.
    assert (gained["local"], gained["difference"]) == (pytest.approx(0.5), pytest.approx(0.1))
    assert gained["low"] == pytest.approx(0.1 - 4.303 * 0.2 / 3**0.5, abs=1e-4)
    assert gained["high"] == pytest.approx(0.1 + 4.303 * 0.2 / 3**0.5, abs=1e-4)
    assert math.isnan(compare_means_with_local(rows[:2] + rows[6:8])[0]["low"])


def test_differences_are_paired_seed_by_seed() -> None:
    rows = [row("ept", 0, "a", 0.5), row("ept", 0, "b", 0.7), row("ept", 1, "a", 0.9)]
    rows += [
        row("vpt", 0, "a", 0.7),
        row("vpt", 1, "a", 0.9),
        row("vpt", 2, "a", 0.2),
        row("vpt", 3, "a", float("nan")),
    ]
    summary = {(r["method"], r["metric"]): r for r in summarise(rows, "ept")}
    ept, vpt = summary["ept", "auc"], summary["vpt", "auc"]
    assert (ept["mean"], ept["runs"], ept["difference"]) == (pytest.approx(0.75), 2, 0)
    assert (vpt["mean"], vpt["runs"]) == (pytest.approx(0.6), 3)
    assert (vpt["difference"], vpt["pairs"]) == (pytest.approx(0.05), 2)
    assert vpt["difference_sd"] == pytest.approx(0.1 / 2**0.5)
