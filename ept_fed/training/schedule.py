"""Learning-rate schedules as functions of progress, so that a resumed round needs no saved state."""

import math
from typing import Literal

__all__ = ["schedule_factor"]


def schedule_factor(schedule: Literal["cosine", "constant"], progress: float) -> float:
    """Return the factor for the base learning rate at progress in [0, 1) of the whole run.

    cosine falls from 1 to 0 over all rounds (the paper uses it over its 20 epochs); constant stays at 1.
    """
    if not 0.0 <= progress < 1.0:
        raise ValueError(f"progress {progress} is not in [0, 1)")
    if schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * progress))
