"""What every strategy is to the round loop: updates in, the next payload out, and a memory that can be saved."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ept_fed.protocol.layout import Vector

__all__ = ["Aggregator", "Update", "Weigh", "count_examples", "stack_payloads"]

# From sample counts (S,) to weights (S,).
Weigh = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Update:
    """What one site sent in a round, after admission; `gradient` only where the strategy wants it."""

    site: str
    payload: Vector
    examples: int
    loss: float
    steps: int
    gradient: Vector | None = None


class Aggregator(ABC):
    """Turns a round's updates into the next global payload, and can say and take back what it remembers."""

    @abstractmethod
    def aggregate(self, round_number: int, payload: Vector, updates: Sequence[Update]) -> Vector:
        """Return the next payload (n,) from the current one and at least one update, sorted by site."""

    def correction(self, site: str) -> Vector | None:
        """Return c (n,) of the term ⟨c, payload⟩ that this site adds to its loss next, or None for no term."""
        del site
        return None

    def state(self) -> dict[str, Vector]:
        """Return what must be remembered between rounds, by name."""
        return {}

    def load_state(self, state: Mapping[str, Vector], payload: Vector) -> None:
        """Take back what `state` returned, and the payload that belongs to it.

        Raises:
            ValueError: for a state of another strategy.
        """
        del payload
        if state:
            raise ValueError(f"{type(self).__name__} remembers nothing, but was given {sorted(state)}")


def stack_payloads(updates: Sequence[Update]) -> npt.NDArray[np.float32]:
    """Return the payloads (S, n) in the order of the updates."""
    return np.stack([update.payload for update in updates])


def count_examples(updates: Sequence[Update]) -> npt.NDArray[np.int64]:
    """Return the sample counts (S,) in the order of the updates."""
    return np.array([update.examples for update in updates], dtype=np.int64)
