"""Who is there: wait for sites to come online, with a deadline, and a grace once enough of them are."""

import time
from collections import Counter
from collections.abc import Sequence

from flwr.serverapp import Grid

__all__ = ["wait_for_sites"]

_POLL_SECONDS = 1.0


def wait_for_sites(
    grid: Grid, wanted: Sequence[str], *, deadline: float, quorum: int, grace: float
) -> tuple[dict[str, int], list[str]]:
    """Return node ids by name, and names that two nodes claim.

    Waits for all until `deadline` seconds have passed; once the quorum is online, no longer than `grace` after that.
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
