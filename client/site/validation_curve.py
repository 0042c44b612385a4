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

    def choose_round(self, tolerance: float) -> int:
        """Return the latest round whose AUC is within the tolerance of the highest; 0 if no AUC is defined."""
        lowest = self._highest - tolerance
        return max((number for number, value in enumerate(self.auc, 1) if value >= lowest), default=0)

    def is_over(self, patience: int | None) -> bool:
        """Whether so many rounds have passed without a better AUC; with None, or without any AUC, never."""
        if patience is None or math.isinf(self._highest):
            return False
        return len(self.auc) - (self.auc.index(self._highest) + 1) >= patience

    @property
    def _highest(self) -> float:
        return max((value for value in self.auc if not math.isnan(value)), default=math.inf)
