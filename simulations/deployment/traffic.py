"""Bytes between the server and each site, as counted by the proxy: body and headers of every request."""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

__all__ = ["Counted", "count_traffic", "is_idle", "kind_of", "read_requests", "sender_of"]

# The reply to a poll that finds a message has its metadata and the ids of its parts, of 64 bytes each.
_MIN_FOUND = 64


@dataclass
class Counted:
    """Requests of a site, their bytes with headers, and the bytes of their bodies; directions as seen by the server."""

    requests: int = 0
    received: int = 0
    sent: int = 0
    received_bodies: int = 0
    sent_bodies: int = 0


def count_traffic(
    requests: Iterable[Mapping[str, Any]], keys: Mapping[str, bytes], *, since: float = 0.0, until: float = float("inf")
) -> dict[str, Counted]:
    """Sum the requests of a proxy's log by site; requests without a site's key and refused requests are not counted.

    Args:
        requests: from `read_requests`.
        keys: public key (PEM) of each site's node, by name.
        since, until: seconds since the epoch; the log has whole seconds.
    """
    names = {key: name for name, key in keys.items()}
    found = {name: Counted() for name in keys}
    for request in requests:
        name = names.get(sender_of(request))
        if name is None or request["status"] >= 400:
            continue
        if not since <= datetime.fromisoformat(request["time"]).timestamp() <= until:
            continue
        counted = found[name]
        counted.requests += 1
        counted.received += request["received"]
        counted.sent += request["sent"]
        counted.received_bodies += request["body"]
        counted.sent_bodies += request["sent_body"]
    return found


def read_requests(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the requests in a proxy's log and its rotated predecessors, the oldest first; skip other lines."""
    older = sorted(log.parent.glob(f"{log.name}.*"), key=lambda path: path.suffix, reverse=True)
    for path in (*older, log):
        if not path.exists():
            continue
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not line.startswith('{"time"'):
                    continue
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


def kind_of(request: Mapping[str, Any]) -> str:
    """Return the kind of a request, which is the last part of its path."""
    return str(request["path"]).rsplit("/", maxsplit=1)[-1]


def is_idle(request: Mapping[str, Any]) -> bool:
    """Return whether a request is independent of the rounds: a heartbeat, or a poll that found no message."""
    kind = kind_of(request)
    return kind == "send-node-heartbeat" or (kind == "pull-messages" and request["sent_body"] < _MIN_FOUND)


def sender_of(request: Mapping[str, Any]) -> bytes:
    """Return the public key (PEM) that a request presented, or b"" if it presented none."""
    try:
        return base64.b64decode(str(request.get("key", "")), validate=True)
    except ValueError:
        return b""
