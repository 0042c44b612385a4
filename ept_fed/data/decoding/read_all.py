"""Read many images on every core: decoding releases Python's lock, so threads are enough."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["read_all"]

# What stays under Python's lock keeps more threads than these waiting for each other.
_MAX_THREADS = 4

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


def read_all(read: Callable[[_Given], _Made], items: Iterable[_Given]) -> list[_Made]:
    """Return `read(item)` in the order of `items`, made on as many threads as this process may use cores, four at most.

    The first that raises, in that order, raises here.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1:
        return [read(item) for item in items]
    with ThreadPoolExecutor(min(cores, _MAX_THREADS), thread_name_prefix="read-images") as pool:
        return list(pool.map(read, items))
