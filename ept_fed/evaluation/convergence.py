"""Whether training had ended when it stopped, from validation results by round.

A table that compares methods whose training was cut short compares their speeds, and not what they reach. So the
results of the last quarter of the rounds are compared with those of the quarter before it, each as a mean over its
rounds, because single rounds are noisy on few validation images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["AUC_TOLERANCE", "LOSS_TOLERANCE", "MIN_ROUNDS", "Convergence", "TrainingState", "assess_convergence"]

TrainingState = Literal["ended", "still improving", "not known"]

# Below this number, a quarter would be a single round.
MIN_ROUNDS = 8
AUC_TOLERANCE = 0.01
LOSS_TOLERANCE = 0.02  # share of the loss

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Convergence:
    """What the last quarter of the rounds still changed on validation images.

    Attributes:
        state: "still improving" if the mean AUC rose by more than `AUC_TOLERANCE`, or the mean loss fell by more than
            the share `LOSS_TOLERANCE`; "not known" with fewer than `MIN_ROUNDS` rounds with results.
        rounds: number of rounds with results.
        auc_change: mean AUC of the last quarter minus that of the quarter before; NaN if not known.
        loss_change: the same of the loss, as a share of the loss in the quarter before; NaN if not known.
    """

    state: TrainingState
    rounds: int
    auc_change: float
    loss_change: float


def assess_convergence(auc: Sequence[float], loss: Sequence[float]) -> Convergence:
    """Return whether training had ended.

    Args:
        auc: (R,) validation AUC after each round; NaN where it is not known.
        loss: (R,) validation loss after each round; NaN where it is not known.
    """
    if len(auc) != len(loss):
        raise ValueError(f"{len(auc)} values of the AUC and {len(loss)} of the loss: give one of each per round")
    values = np.array([auc, loss], dtype=np.float64)
    values = values[:, np.isfinite(values).all(axis=0)]
    rounds = values.shape[1]
    if rounds < MIN_ROUNDS:
        return Convergence("not known", rounds, float("nan"), float("nan"))
    quarter = rounds // 4
    before, last = values[:, -2 * quarter : -quarter].mean(axis=1), values[:, -quarter:].mean(axis=1)
    auc_change = float(last[0] - before[0])
    loss_change = float((last[1] - before[1]) / before[1]) if before[1] > 0 else 0.0
    improving = auc_change > AUC_TOLERANCE or loss_change < -LOSS_TOLERANCE
    return Convergence("still improving" if improving else "ended", rounds, auc_change, loss_change)
