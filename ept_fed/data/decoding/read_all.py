"""Parallel reading of many images; threads suffice because decoding releases Python's global lock."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["read_all"]

# With more threads, the work that does not release the lock makes threads wait for each other.
_MAX_THREADS = 4

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


def read_all(read: Callable[[_Given], _Made], items: Iterable[_Given]) -> list[_Made]:
    """Return `read(item)` for all items, in the order of `items`.

    There is one thread for each core that this process may use, but at most four. If several calls raise, the first
    exception in the order of `items` is raised.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1:
        return [read(item) for item in items]
    with ThreadPoolExecutor(min(cores, _MAX_THREADS), thread_name_prefix="read-images") as pool:
        return list(pool.map(read, items))
