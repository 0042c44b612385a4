"""A Grid that gets the names of nodes from their introductions, for Flower's simulation and an insecure loopback."""

import logging
import time
from collections.abc import Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ept_fed.protocol.layout import PayloadMismatchError
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.run_plan.plan import Plan
from ept_fed.run_plan.plan_json import plan_differences
from server.deployment.polling_grid import POLL_SECONDS, NodeInfo, PollingGrid
from simulations.flower.introduction import Introduction, decode_introduction

__all__ = ["IntroductionError", "NamedGrid"]

_log = logging.getLogger("flwr.ept_fed")  # shown by `flwr log`


class IntroductionError(RuntimeError):
    """Nodes that cannot form one federation; the message names them and the correction."""


class NamedGrid(PollingGrid):
    """Forwards everything to another Grid, but identifies its nodes by the names of their sites."""

    def __init__(self, grid: Grid, *, deadline: float) -> None:
        """Wrap a Grid; `deadline` is the time in seconds for nodes to come online and to introduce themselves."""
        super().__init__(grid)
        self._deadline = deadline
        self._introduced: dict[int, Introduction] = {}
        self._misfits: set[int] = set()

    def agree_on_plan(self) -> Plan:
        """Return the plan on which all nodes agree, once at least one node is online.

        Raises:
            IntroductionError: if no node is online in time, or if one does not fit the others.
        """
        end = time.monotonic() + self._deadline
        while not self._meet_nodes():
            if time.monotonic() >= end:
                raise IntroductionError(f"no node is online after {self._deadline:g} s; start the SuperNodes first")
            time.sleep(POLL_SECONDS)
        return next(iter(self._introduced.values())).plan

    def get_nodes(self) -> list[NodeInfo]:
        """Return the nodes that are online, by name; new nodes have to introduce themselves first.

        A node that cannot, or that does not fit the others, is logged and left out; the run continues without it.
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
                raise IntroductionError(f"nodes {other} and {node} both represent '{new.site}'; give each its own site")
            differing = plan_differences(known.plan, new.plan)
            if differing:
                raise IntroductionError(
                    f"{known.site} and {new.site} plan different runs: {', '.join(differing)} differ; "
                    "give both the same experiment, backbone and version of ept-fed"
                )
