"""A Grid that forwards all calls to another Grid, but polls for replies ten times per second.

Flower's own wait for replies sleeps three seconds between two polls.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

# Grid.get_nodes returns this type, which flwr 1.41 exports nowhere else.
from flwr.proto.node_pb2 import NodeInfo  # isort: skip

__all__ = ["POLL_SECONDS", "NodeInfo", "PollingGrid"]

POLL_SECONDS = 0.1

_log = logging.getLogger("flwr.ept_fed")  # shown by `flwr log`


class PollingGrid(Grid):
    """The Grid of a run, with faster polling for replies; an unreadable reply does not affect other replies."""

    def __init__(self, grid: Grid) -> None:
        """Wrap a Grid."""
        self._grid = grid

    def get_nodes(self) -> list[NodeInfo]:
        """Return the nodes that are online."""
        return list(self._grid.get_nodes())

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes that `get_nodes` returns."""
        return [node.node_id for node in self.get_nodes()]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and yield their replies as they arrive, until `timeout` seconds have passed."""
        end = None if timeout is None else time.monotonic() + timeout
        waiting = dict.fromkeys(identifier for identifier in self._grid.push_messages(list(messages)) if identifier)
        while waiting:
            for identifier in tuple(waiting):
                for reply in self._pull(identifier):
                    waiting.pop(identifier, None)
                    yield reply
            if end is not None and time.monotonic() >= end:
                return
            if waiting:
                time.sleep(POLL_SECONDS)

    def _pull(self, identifier: str) -> list[Message]:
        """Return the reply to one message if it has arrived; an unreadable reply must not affect other replies."""
        try:
            return list(self._grid.pull_messages((identifier,)))
        except Exception:  # noqa: BLE001 - a node's bytes can cause any exception in Flower's parser
            _log.exception("a reply cannot be read")
            return []

    @property
    def run(self) -> Any:
        """The run of the wrapped Grid."""
        return self._grid.run

    def set_run(self, run: Any) -> None:
        """Set the run of the wrapped Grid."""
        self._grid.set_run(run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages through the wrapped Grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived."""
        return self._grid.pull_messages(message_ids)
