"""A Grid whose nodes are the federation's sites, registered under their names with the keys of their kits."""

import logging
from collections.abc import Mapping

from flwr.serverapp import Grid

from server.deployment.polling_grid import NodeInfo, PollingGrid

__all__ = ["RegisteredGrid"]

_log = logging.getLogger(__name__)


class RegisteredGrid(PollingGrid):
    """A Grid that returns only nodes of the federation; any other node is logged once and receives no message.

    A program with access to SuperLink's control API can register a node under any name. The name is therefore not
    sufficient: the node must also have the key that the consortium certified for that site.
    """

    def __init__(self, grid: Grid, keys: Mapping[str, bytes]) -> None:
        """Wrap a Grid; `keys` are the public keys (PEM) of the admitted sites' nodes, by name."""
        super().__init__(grid)
        self._keys = dict(keys)
        self._strangers: set[int] = set()

    def get_nodes(self) -> list[NodeInfo]:
        """Return the sites' nodes that are online."""
        nodes = []
        for node in super().get_nodes():
            if self._keys.get(node.name) == node.public_key:
                nodes.append(node)
            elif node.node_id not in self._strangers:
                self._strangers.add(node.node_id)
                _log.warning(
                    "node %d, registered as %r, is not a site of this federation", node.node_id, node.name[:40]
                )
        return nodes
