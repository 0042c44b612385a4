"""An in-process Flower Grid that runs the ServerApp and ClientApp of a deployment without ports and without Ray."""

import logging
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

# Grid.get_nodes returns this type, which flwr 1.41 exports nowhere else.
from flwr.proto.node_pb2 import NodeInfo  # isort: skip

from ept_fed.flower.transport import copy_over_wire, name_message, set_task_identity

__all__ = ["LocalGrid", "run_locally"]

_CLIENT_APP_RAISED = 2

_log = logging.getLogger(__name__)


class LocalGrid(Grid):
    """Passes each message to a ClientApp in this process, in the order in which messages were sent.

    Each reply is computed only when the caller requests it, so a caller that shows progress sees each site as it
    finishes. Messages are serialised and parsed in both directions, as on a network, so neither side can change
    objects of the other.
    """

    def __init__(self, client_app: ClientApp, sites: Sequence[str], *, run_id: int = 1) -> None:
        """Register `sites` by name; node ids count from 1 in their order."""
        set_task_identity(run_id)
        self._client_app = client_app
        self._nodes = dict(enumerate(sites, start=1))
        self._contexts = {
            node: Context(run_id=run_id, node_id=node, node_config={"site": name}, state=RecordDict(), run_config={})
            for node, name in self._nodes.items()
        }
        self._pending: dict[str, Message] = {}
        self._run: Any = None

    def set_run(self, run: Any) -> None:
        """Keep the run, as the interface requires."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run given to `set_run`."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the ids of all sites."""
        return list(self._nodes)

    def get_nodes(self) -> list[NodeInfo]:
        """Return all sites with their registered names."""
        return [NodeInfo(node_id=node, name=name) for node, name in self._nodes.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Accept messages; nothing runs until their replies are pulled."""
        identifiers = []
        for message in messages:
            identifier = uuid.uuid4().hex
            name_message(message, identifier)
            self._pending[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield the reply to each pushed message; its site runs only now."""
        for identifier in message_ids:
            message = self._pending.pop(identifier, None)
            if message is not None:
                yield self._answer(message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and yield their replies; `timeout` has no effect, as a site in this process cannot be late."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            received = copy_over_wire(message)
            name_message(received, message.metadata.message_id)
            return copy_over_wire(self._client_app(received, context))
        except Exception as error:  # noqa: BLE001 - Flower's own runtime turns any exception of an app into this reply
            _log.exception("the ClientApp of %s raised", self._nodes[message.metadata.dst_node_id])
            return Message(Error(code=_CLIENT_APP_RAISED, reason=type(error).__name__), reply_to=message)


def run_locally(server_app: ServerApp, client_app: ClientApp, sites: Sequence[str]) -> None:
    """Run a ServerApp in this process, with one ClientApp that acts for all `sites`."""
    grid = LocalGrid(client_app, sites)
    server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}))
