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
    """The highest validation AUC so far, and the round that would be kept if the run ended now.

    Attributes:
        auc: the highest median validation AUC; -inf before the first evaluation.
        since: number of rounds since the one with that AUC.
        round: number of the latest round whose AUC is within the tolerance; 0 before the first evaluation.
        payload: (layout.size,) the payload of `round`; None before the first evaluation.
    """

    auc: float = -math.inf
    since: int = 0
    round: int = 0
    payload: Vector | None = None


class RoundSelection:
    """Follows the evaluations of a run, in the order of its rounds."""

    def __init__(self, plan: Plan, best: BestRound | None = None) -> None:
        """Start a run, or continue one with the best round of its checkpoint."""
        self._patience, self._target = plan.patience, plan.target_auc
        self._tolerance = plan.round_tolerance
        self.best = best or BestRound()

    def observe(self, record: RoundRecord, payload: Vector) -> str | None:
        """Note the evaluation of a round's payload; return the reason to stop after this round, or None to continue.

        A round without a defined AUC changes nothing. Patience counts from the first round with the highest AUC.
        """
        median = median_auc(record)
        if math.isnan(median):
            return None
        best = self.best
        highest, since = (median, 0) if median > best.auc else (best.auc, best.since + 1)
        if median >= highest - (self._tolerance or 0.0):
            self.best = BestRound(highest, since, record.round, payload)
        else:
            self.best = BestRound(highest, since, best.round, best.payload)
        if self._target is not None and median >= self._target:
            return f"target AUC reached in round {record.round}"
        if self._patience is not None and self.best.since >= self._patience:
            return f"no better validation AUC for {self._patience} rounds, at round {record.round}"
        return None

    @property
    def best_round(self) -> int:
        """The round whose state the sites must keep, beside their latest states; 0 if there is none."""
        return 0 if self._tolerance is None else self.best.round

    def choose(self, last: int, payload: Vector) -> tuple[int, Vector]:
        """Return the round that the run keeps, and its payload.

        Args:
            last: number of the last round.
            payload: the payload after the last round, which is kept if no round has a defined validation AUC.
        """
        if self._tolerance is not None and self.best.payload is not None:
            return self.best.round, self.best.payload
        return last, payload


def median_auc(record: RoundRecord) -> float:
    """Return the median validation AUC over the sites after a round; NaN if no site has one."""
    values = [site.evaluation["auc"] for site in record.sites.values() if "auc" in site.evaluation]
    defined = [value for value in values if not math.isnan(value)]
    return float(np.median(defined)) if defined else math.nan
