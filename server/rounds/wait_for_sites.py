"""Waiting for sites to come online, with a deadline and a grace period after the quorum is reached."""

import time
from collections import Counter
from collections.abc import Sequence

from flwr.serverapp import Grid

__all__ = ["wait_for_sites"]

_POLL_SECONDS = 1.0


def wait_for_sites(
    grid: Grid, wanted: Sequence[str], *, deadline: float, quorum: int, grace: float
) -> tuple[dict[str, int], list[str]]:
    """Return the node ids by site name, and the names that more than one node uses.

    The function waits for all sites for at most `deadline` seconds. After the quorum is online it waits for at most
    `grace` more seconds.
    """
    end = time.monotonic() + deadline
    enough = False
    while True:
        nodes = [(node.name, node.node_id) for node in grid.get_nodes() if node.name in wanted]
        online = dict(nodes)
        now = time.monotonic()
        if not enough and len(online) >= quorum:
            enough, end = True, min(end, now + grace)
        if len(online) == len(wanted) or now >= end:
            return online, sorted(name for name, count in Counter(name for name, _ in nodes).items() if count > 1)
        time.sleep(min(_POLL_SECONDS, max(0.0, end - now)))
