"""A Grid whose nodes have names: those they give when asked. For Flower's simulation and an insecure loopback."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

# Grid.get_nodes returns this type, which flwr 1.41 exports nowhere else.
from flwr.proto.node_pb2 import NodeInfo  # isort: skip

from ept_fed.protocol.layout import PayloadMismatchError
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.protocol.plan import Plan
from ept_fed.protocol.plan_json import plan_differences
from simulations.introduction import Introduction, decode_introduction

__all__ = ["IntroductionError", "NamedGrid"]

_POLL_SECONDS = 0.1

_log = logging.getLogger("flwr.ept_fed")  # shown by `flwr log`


class IntroductionError(RuntimeError):
    """Nodes that cannot make up one federation; the text says which, and what to correct."""


class NamedGrid(Grid):
    """Passes everything on to another Grid, but knows its nodes by the names of their sites.

    Replies are looked for ten times a second: Flower's own wait for a SuperLink sleeps three seconds at a time.
    """

    def __init__(self, grid: Grid, *, deadline: float) -> None:
        """Wrap a Grid; `deadline` is the seconds that nodes have to turn up and to introduce themselves."""
        self._grid, self._deadline = grid, deadline
        self._introduced: dict[int, Introduction] = {}
        self._misfits: set[int] = set()

    def agree_on_plan(self) -> Plan:
        """Return the one plan that all nodes make, once at least one is online.

        Raises:
            IntroductionError: if none is in time, or one does not fit the others.
        """
        end = time.monotonic() + self._deadline
        while not self._meet_nodes():
            if time.monotonic() >= end:
                raise IntroductionError(f"no node is online after {self._deadline:g} s; start the SuperNodes first")
            time.sleep(_POLL_SECONDS)
        return next(iter(self._introduced.values())).plan

    def get_nodes(self) -> list[NodeInfo]:
        """Return the nodes that are online, by name; new ones are asked to introduce themselves first.

        One that cannot, or that does not fit the others, is logged and left out: the run goes on without it.
        """
        try:
            return self._meet_nodes()
        except IntroductionError as misfit:
            _log.warning("%s", misfit)
            online = {node.node_id for node in self._grid.get_nodes()}
            known = [(node, met.site) for node, met in sorted(self._introduced.items()) if node in online]
            return [NodeInfo(node_id=node, name=site) for node, site in known]

    def _meet_nodes(self) -> list[NodeInfo]:
        online = sorted(node.node_id for node in self._grid.get_nodes())
        self._introduced = {node: met for node, met in self._introduced.items() if node in online}
        self._introduce([node for node in online if node not in self._introduced and node not in self._misfits])
        return [NodeInfo(node_id=node, name=self._introduced[node].site) for node in online if node in self._introduced]

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes that are online."""
        return [node.node_id for node in self.get_nodes()]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and yield their replies as they come, until `timeout` seconds have passed."""
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
                time.sleep(_POLL_SECONDS)

    def _pull(self, identifier: str) -> list[Message]:
        """Return the reply to one message if it has come; one that cannot be read must not take others along."""
        try:
            return list(self._grid.pull_messages((identifier,)))
        except Exception:  # noqa: BLE001 - what a node sent can fail in Flower's reader in any way
            _log.exception("a reply cannot be read")
            return []

    def _introduce(self, nodes: Sequence[int]) -> None:
        questions = [Message(RecordDict(), node, "query", ttl=self._deadline) for node in nodes]
        silent = set(nodes)
        self._misfits |= silent
        for reply in self.send_and_receive(questions, timeout=self._deadline):
            node = reply.metadata.src_node_id
            try:
                introduction = decode_introduction(reply)
            except (MessageRefusedError, PayloadMismatchError) as refusal:
                raise IntroductionError(f"node {node} did not introduce itself ({refusal}); see its log") from refusal
            self._check(node, introduction)
            _log.info("node %d is %s", node, introduction.site)
            self._introduced[node] = introduction
            silent.discard(node)
            self._misfits.discard(node)
        if silent:
            raise IntroductionError(f"nodes {sorted(silent)} did not introduce themselves in {self._deadline:g} s")

    def _check(self, node: int, new: Introduction) -> None:
        for other, known in self._introduced.items():
            if known.site == new.site:
                raise IntroductionError(f"nodes {other} and {node} both stand for '{new.site}'; give each its own site")
            differing = plan_differences(known.plan, new.plan)
            if differing:
                raise IntroductionError(
                    f"{known.site} and {new.site} plan different runs: {', '.join(differing)} differ; "
                    "give both the same experiment, backbone and version of ept-fed"
                )

    @property
    def run(self) -> Any:
        """The run of the Grid below."""
        return self._grid.run

    def set_run(self, run: Any) -> None:
        """Pass the run on."""
        self._grid.set_run(run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass messages on."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come."""
        return self._grid.pull_messages(message_ids)
