"""The choice of the round whose prompts a federation keeps, and its early stop, by validation results of the sites.

Both use the median validation AUC over the sites, which a single site cannot change much. Test images are not used.
"""

import math
from dataclasses import dataclass

import numpy as np

from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.run_plan.plan import Plan

__all__ = ["BestRound", "RoundSelection", "median_auc"]


@dataclass(frozen=True)
class BestRound:
    """The best round so far.

    Attributes:
        auc: its median validation AUC; -inf before the first evaluation.
        since: number of rounds since then.
        round: its number; 0 before the first evaluation.
        payload: (layout.size,) its payload; None before the first evaluation.
    """

    auc: float = -math.inf
    since: int = 0
    round: int = 0
    payload: Vector | None = None


class RoundSelection:
    """Follows the evaluations of a run, in the order of its rounds."""

    def __init__(self, plan: Plan, best: BestRound | None = None) -> None:
        """Start a run, or continue one with the best round of its checkpoint."""
        self._patience, self._target, self._select = plan.patience, plan.target_auc, plan.select
        self.best = best or BestRound()

    def observe(self, record: RoundRecord, payload: Vector) -> str | None:
        """Note the evaluation of a round's payload; return the reason to stop after this round, or None to continue.

        Of equal rounds, the earliest is the best. A round without a defined AUC changes nothing.
        """
        median = median_auc(record)
        if math.isnan(median):
            return None
        if median > self.best.auc:
            self.best = BestRound(median, 0, record.round, payload)
        else:
            self.best = BestRound(self.best.auc, self.best.since + 1, self.best.round, self.best.payload)
        if self._target is not None and median >= self._target:
            return f"target AUC reached in round {record.round}"
        if self._patience is not None and self.best.since >= self._patience:
            return f"no better validation AUC for {self._patience} rounds, at round {record.round}"
        return None

    @property
    def best_round(self) -> int:
        """The round whose state the sites have to keep, beside their latest states; 0 if there is none."""
        return self.best.round if self._select == "best" else 0

    def choose(self, last: int, payload: Vector) -> tuple[int, Vector]:
        """Return the round that the run keeps, and its payload.

        Args:
            last: number of the last round.
            payload: the payload after the last round, which is kept if no round has a defined validation AUC.
        """
        if self._select == "best" and self.best.payload is not None:
            return self.best.round, self.best.payload
        return last, payload


def median_auc(record: RoundRecord) -> float:
    """Return the median validation AUC over the sites after a round; NaN if no site has one."""
    values = [site.evaluation["auc"] for site in record.sites.values() if "auc" in site.evaluation]
    defined = [value for value in values if not math.isnan(value)]
    return float(np.median(defined)) if defined else math.nan
