"""The choice between a site's candidate models by log loss on its own validation images.

The candidates are ordered from the federation towards the site alone. The one-standard-error rule (Breiman et al. 1984,
Classification and Regression Trees, section 3.4.3) takes the first candidate whose loss is within one standard error of
the lowest: a site leaves the federation only if its validation images show a reason. The standard error is that of the
paired difference over groups, such as patients, because images of one patient are not independent.

Few-shot models are often overconfident, each in its own way. So the logits of every candidate are first divided by the
temperature that suits it best on these images (Guo et al. 2017).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ept_fed.evaluation.calibration import apply_temperature, fit_temperature

__all__ = ["MIX_GRID", "CandidateRow", "Choice", "choose_candidate", "mix", "mix_weight"]

Array = npt.NDArray[np.float64]

# Share of the local model in the sum of logits.
MIX_GRID = tuple(step / 10 for step in range(1, 10))
_TINY = 1e-12


@dataclass(frozen=True)
class CandidateRow:
    """One candidate.

    Attributes:
        name: its name.
        loss: mean log loss over the validation images, at the temperature that suits it best.
        difference: its loss minus the lowest loss of all candidates.
        standard_error: standard error of that difference over groups; NaN with fewer than two groups.
    """

    name: str
    loss: float
    difference: float
    standard_error: float


@dataclass(frozen=True)
class Choice:
    """The chosen candidate.

    Attributes:
        name: of the chosen candidate.
        reason: why, in one sentence.
        rows: all candidates, in the order of preference; empty without validation images.
    """

    name: str
    reason: str
    rows: tuple[CandidateRow, ...]


def choose_candidate(
    labels: npt.NDArray[np.integer], groups: Sequence[str], candidates: Mapping[str, Array], task: str
) -> Choice:
    """Return the candidate to use.

    Args:
        labels: (n,) class indices, or (n, C) in {0, 1} for multi-label.
        groups: (n,) group of each image.
        candidates: (n, C) probabilities by name, ordered from the most preferred to the least.
        task: single_label or multi_label.

    Raises:
        ValueError: if there is no candidate, or shapes do not fit.
    """
    first = next(iter(candidates), None)
    if first is None:
        raise ValueError("there is no candidate to choose from")
    if not len(labels):
        return Choice(first, "this site has no validation images to choose by", ())
    losses = {name: _calibrated_losses(labels, scores, task) for name, scores in candidates.items()}
    means = {name: float(own.mean()) for name, own in losses.items()}
    best = min(means, key=means.__getitem__)
    rows = tuple(
        CandidateRow(name, means[name], means[name] - means[best], _standard_error(own - losses[best], groups))
        for name, own in losses.items()
    )
    chosen = next(row for row in rows if row.name == best or row.difference <= row.standard_error)
    if chosen.name == best:
        reason = "it has the lowest log loss on this site's validation images"
    else:
        reason = (
            f"its log loss on this site's validation images is {chosen.difference:.3f} above the lowest ({best}), "
            f"which is within one standard error ({chosen.standard_error:.3f})"
        )
    return Choice(chosen.name, reason, rows)


def mix(local: Array, federated: Array, share: float, task: str) -> Array:
    """Return the probabilities (n, C) of the weighted sum of two models' logits; `share` is the local one's weight."""
    if task == "multi_label":
        logits = share * _logit(local) + (1 - share) * _logit(federated)
        return np.asarray(1 / (1 + np.exp(-logits)))
    logits = share * _log(local) + (1 - share) * _log(federated)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def mix_weight(
    labels: npt.NDArray[np.integer], groups: Sequence[str], local: Array, federated: Array, task: str
) -> tuple[float, Array]:
    """Return the share of the local model with the lowest log loss, and probabilities that are fair to compare.

    In the returned probabilities, the share of each group's images is chosen on the other groups only. So they do not
    profit from the choice.

    Args:
        labels: as for `choose_candidate`.
        groups: as there.
        local: (n, C) probabilities of the local model.
        federated: (n, C) probabilities of the federated model.
        task: as there.

    Returns:
        the share, of `MIX_GRID`, and probabilities (n, C). Without images, the share is one half.
    """
    if not len(labels):
        return 0.5, federated
    mixed = np.stack([mix(local, federated, share, task) for share in MIX_GRID])
    losses = np.stack([_losses(labels, scores, task) for scores in mixed])
    codes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    total = losses.sum(axis=1)
    own = np.stack([np.bincount(codes, weights=row) for row in losses])
    held_out = np.argmin(total[:, None] - own, axis=0)[codes]
    return MIX_GRID[int(total.argmin())], np.asarray(mixed[held_out, np.arange(len(codes))])


def _calibrated_losses(labels: npt.NDArray[np.integer], scores: Array, task: str) -> Array:
    return _losses(labels, apply_temperature(scores, fit_temperature(labels, scores, task), task), task)


def _losses(labels: npt.NDArray[np.integer], scores: Array, task: str) -> Array:
    """Return the log loss of each image (n,); for multi-label, its mean over the classes."""
    if task == "multi_label":
        return np.asarray(-np.where(labels.astype(bool), _log(scores), _log(1 - scores)).mean(axis=1))
    return np.asarray(-_log(scores)[np.arange(len(labels)), labels])


def _standard_error(differences: Array, groups: Sequence[str]) -> float:
    """Return the standard error of the mean difference over images, with whole groups as the units."""
    codes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    count = int(codes.max()) + 1
    if count < 2:
        return float("nan")
    deviations = np.bincount(codes, weights=differences - differences.mean())
    return float(np.sqrt(count / (count - 1) * (deviations**2).sum()) / len(differences))


def _log(scores: Array) -> Array:
    return np.asarray(np.log(np.clip(scores, _TINY, 1.0)))


def _logit(scores: Array) -> Array:
    return _log(scores) - _log(1 - scores)
