"""A local model's results on validation images after each round; they are kept with its state."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

__all__ = ["ValidationCurve"]

_AUC, _LOSS = "validation/auc", "validation/loss"


@dataclass(frozen=True)
class ValidationCurve:
    """Validation AUC and loss after rounds 1, 2, …; NaN where undefined, empty without validation images."""

    auc: tuple[float, ...] = ()
    loss: tuple[float, ...] = ()

    @classmethod
    def read(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Return the curve in the tensors of a state; empty if there is none."""
        return cls(tuple(tensors[_AUC].tolist()), tuple(tensors[_LOSS].tolist())) if _AUC in tensors else cls()

    def tensors(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the curve as tensors of a state."""
        return {_AUC: np.array(self.auc), _LOSS: np.array(self.loss)}

    def add(self, metrics: Mapping[str, float]) -> "ValidationCurve":
        """Return the curve with the metrics after one more round."""
        return ValidationCurve((*self.auc, metrics["auc"]), (*self.loss, metrics["loss"]))

    @property
    def best_round(self) -> int:
        """The first round with the highest AUC; 0 if no round has a defined AUC."""
        defined = [(value, -number) for number, value in enumerate(self.auc, 1) if not math.isnan(value)]
        return -max(defined)[1] if defined else 0

    def is_over(self, patience: int | None) -> bool:
        """Whether so many rounds have passed without a better AUC; with None, or without any AUC, never."""
        return patience is not None and self.best_round > 0 and len(self.auc) - self.best_round >= patience
