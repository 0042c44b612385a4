"""Time several callables in turn, A B C A B C …, so that changes in machine speed affect all of them equally."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Timing", "time_paired"]


@dataclass(frozen=True)
class Timing:
    """The times of one callable, compared with those of the first callable.

    Attributes:
        milliseconds: median time.
        ratio: median over turns of the ratio to the first callable in the same turn.
        low, high: 10th and 90th percentile of those ratios.
    """

    milliseconds: float
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.milliseconds:9.3f} ms   ×{self.ratio:.3f}   (10–90 %: {self.low:.3f}–{self.high:.3f})"


def time_paired(calls: Mapping[str, Callable[[], Any]], *, turns: int, warm_up: int = 3) -> dict[str, Timing]:
    """Time `calls` for a number of turns after a warm-up, with ratios to the first call."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + turns):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn >= warm_up:
                samples[name].append(time.perf_counter() - started)
    base = next(iter(samples.values()))
    timings = {}
    for name, times in samples.items():
        ratios = sorted(own / other for own, other in zip(times, base, strict=True))
        timings[name] = Timing(
            milliseconds=1e3 * statistics.median(times),
            ratio=statistics.median(ratios),
            low=ratios[len(ratios) // 10],
            high=ratios[-1 - len(ratios) // 10],
        )
    return timings
