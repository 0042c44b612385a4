"""How the training of a model ended at a site: the chosen round, and whether more rounds would have helped."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ept_fed.evaluation.convergence import TrainingState, assess_convergence
from ept_fed.reports.run.round_record import RoundRecord

__all__ = ["TrainingRecord", "describe_federated_training", "describe_training"]


@dataclass(frozen=True)
class TrainingRecord:
    """The training of one model, by the results on one site's validation images; in report.json under `training`.

    Attributes:
        rounds: number of rounds that were trained.
        chosen: the round whose model is used.
        state: as in `ept_fed.evaluation.convergence.Convergence`, but "ended" if the chosen round is before the last
            quarter of the rounds: what came after it was no better.
        auc_change: as there.
        loss_change: as there.
    """

    rounds: int
    chosen: int
    state: TrainingState
    auc_change: float
    loss_change: float

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "TrainingRecord":
        """Return the record from the output of `to_json`, after JSON turned NaN into null."""
        values: dict[str, Any] = {key: math.nan if value is None else value for key, value in document.items()}
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON document; the writer turns NaN into null."""
        return asdict(self)


def describe_federated_training(rounds: Sequence[RoundRecord], site: str, chosen: int) -> TrainingRecord:
    """Return the record of the federation's model, as this site evaluated it after each round."""
    evaluations = [record.sites[site].evaluation if site in record.sites else {} for record in rounds]
    curves = [[evaluation.get(name, math.nan) for evaluation in evaluations] for name in ("auc", "loss")]
    return describe_training(curves[0], curves[1], rounds=len(rounds), chosen=chosen)


def describe_training(auc: Sequence[float], loss: Sequence[float], *, rounds: int, chosen: int) -> TrainingRecord:
    """Return the record of a model with these results on validation images after each round, possibly none."""
    found = assess_convergence(auc, loss)
    passed = found.state == "still improving" and chosen <= rounds - rounds // 4
    return TrainingRecord(rounds, chosen, "ended" if passed else found.state, found.auc_change, found.loss_change)
