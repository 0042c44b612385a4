"""The interface between the round loop and a strategy: updates in, the next payload out, and state to save."""

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
    """One site's accepted update in a round; it has a `gradient` only if the strategy requires one."""

    site: str
    payload: Vector
    examples: int
    loss: float
    steps: int
    gradient: Vector | None = None


class Aggregator(ABC):
    """A strategy that turns a round's updates into the next global payload; its state can be saved and restored."""

    @abstractmethod
    def aggregate(self, round_number: int, payload: Vector, updates: Sequence[Update]) -> Vector:
        """Return the next payload (n,) from the current one and one or more updates, sorted by site."""

    def correction(self, site: str) -> Vector | None:
        """Return c (n,) for the term ⟨c, payload⟩ that this site adds to its next loss, or None for no term."""
        del site
        return None

    def state(self) -> dict[str, Vector]:
        """Return the vectors that must be kept between rounds, by name."""
        return {}

    def load_state(self, state: Mapping[str, Vector], payload: Vector) -> None:
        """Restore a state that `state` returned, with the payload that belongs to it.

        Raises:
            ValueError: if the state is from another strategy.
        """
        del payload
        if state:
            raise ValueError(f"{type(self).__name__} has no state, but received {sorted(state)}")


def stack_payloads(updates: Sequence[Update]) -> npt.NDArray[np.float32]:
    """Return the payloads (S, n) in the order of the updates."""
    return np.stack([update.payload for update in updates])


def count_examples(updates: Sequence[Update]) -> npt.NDArray[np.int64]:
    """Return the sample counts (S,) in the order of the updates."""
    return np.array([update.examples for update in updates], dtype=np.int64)
