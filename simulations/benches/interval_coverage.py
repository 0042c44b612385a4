"""Measure the coverage of a report's 95 % intervals, on simulated sites whose true values are known.

python -m simulations.benches.interval_coverage [--sites 2000]

Every simulated site has three classes of unequal size and patients with two images each, which share the patient's
difficulty. It compares two models, of which the second is better. The true values are those of the same two models on
200,000 patients.
"""

import argparse
from collections.abc import Mapping

import numpy as np

from ept_fed.evaluation.bootstrap import measure, resample, summarise
from ept_fed.evaluation.metrics import Array
from ept_fed.evaluation.weighted_metrics import Metric, Sample, class_averages, class_ranks, image_means

__all__ = ["QUANTITIES", "measure_coverage"]

QUANTITIES = ("AUC", "accuracy", "difference in AUC", "difference in accuracy")

_SHARES = (0.5, 0.3, 0.2)
_GAINS = (1.0, 1.4)
_TRUE_PATIENTS = 200_000


def measure_coverage(sites: int, patients: int, draws: int, seed: int = 0) -> Mapping[str, float]:
    """Return quantity -> share of the simulated sites whose interval contains the true value.

    Args:
        sites: number of simulated sites.
        patients: number of patients per site, with two images each.
        draws: number of bootstrap draws.
        seed: seed of all random draws.
    """
    labels, scores = _draw_site(np.random.default_rng([seed, 0]), _TRUE_PATIENTS)
    truth = _quantities(measure(_both_models(labels, scores), len(labels))[None])[0]
    held = np.zeros(len(QUANTITIES))
    for site in range(sites):
        rng = np.random.default_rng([seed, 1, site])
        labels, scores = _draw_site(rng, patients)
        metric = _both_models(labels, scores)
        groups = [str(patient) for patient in np.repeat(np.arange(patients), 2)]
        point = _quantities(measure(metric, len(labels))[None])[0]
        resampled = _quantities(resample(metric, groups, rng, draws))
        for k in range(len(QUANTITIES)):
            interval = summarise(float(point[k]), resampled[:, k], patients)
            held[k] += interval.low <= truth[k] <= interval.high
    return dict(zip(QUANTITIES, (held / sites).tolist(), strict=True))


def _draw_site(rng: np.random.Generator, patients: int) -> tuple[Array, Array]:
    """Return labels (2 * patients,) and the scores (2, 2 * patients, 3) of both models."""
    C = len(_SHARES)
    labels = np.repeat(rng.choice(C, patients, p=_SHARES), 2)
    hardness = np.repeat(rng.normal(size=(patients, C)), 2, axis=0) + 0.5 * rng.normal(size=(2 * patients, C))
    hot = np.arange(C)[None, :] == labels[:, None]
    logits = [hardness + gain * hot + 0.7 * rng.normal(size=hot.shape) for gain in _GAINS]
    powers = np.exp(np.stack(logits))
    return labels, powers / powers.sum(axis=-1, keepdims=True)


def _both_models(labels: Array, scores: Array) -> Metric:
    """Return the metric, a function of the weights with result (b, 2, 2): macro AUC and accuracy of each model."""
    parts = []
    for own in scores:
        sample = Sample.of(labels, own, "single_label")
        parts.append((class_ranks(sample), image_means(sample)))

    def metric(weights: Array) -> Array:
        rows = [
            np.stack([class_averages(ranks(weights)[:, 0]), means(weights)[:, 0]], axis=1) for ranks, means in parts
        ]
        return np.stack(rows, axis=1)

    return metric


def _quantities(values: Array) -> Array:
    """Return values (b, 4) in the order of `QUANTITIES`, from values (b, 2 models, 2 metrics)."""
    return np.concatenate([values[:, 1], values[:, 1] - values[:, 0]], axis=1)


def main() -> None:
    """Print a table of the coverage by number of patients."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--sites", type=int, default=2000, help="simulated sites per row")
    sites = parser.parse_args().sites
    error = 100 * np.sqrt(0.95 * 0.05 / sites)
    print(f"share of intervals with the true value, %, {sites} sites per row, ± {error:.1f} (one standard error)")
    print(f"{'patients':>8}  " + "  ".join(f"{name:>22}" for name in QUANTITIES))
    for patients in (50, 100, 200, 400):
        coverage = measure_coverage(sites, patients, 1000)
        print(f"{patients:>8}  " + "  ".join(f"{100 * coverage[name]:>22.1f}" for name in QUANTITIES), flush=True)


if __name__ == "__main__":
    main()
