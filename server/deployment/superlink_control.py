"""A client for SuperLink's control API on loopback: nodes and runs, without Flower's command line.

The client of Flower is used (`flwr.supercore.control`, which is not public in flwr 1.41). Flower's command line is not
suitable: it starts a Python process per request and exits with 0 when a run has failed. The API has no authentication:
any account on this machine can use it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab

from ept_fed.errors import UnavailableError

# Flower's message classes; protobuf creates these names at import time.
from flwr.proto.control_pb2 import (  # isort: skip
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)

__all__ = ["Control", "ControlDeclinedError", "ControlError", "Node", "Run", "open_control"]


class ControlError(UnavailableError):
    """SuperLink does not answer or declines a request; the text states which."""


class ControlDeclinedError(ControlError):
    """SuperLink answers, but declines this request."""


@dataclass(frozen=True)
class Node:
    """A node in SuperLink's list; `status` is registered, online, offline or unregistered."""

    identifier: int
    name: str
    key: bytes
    location: str
    status: str
    online_until: float


@dataclass(frozen=True)
class Run:
    """A run in SuperLink's list; `ended` is empty while it runs, then completed, failed or stopped."""

    identifier: int
    name: str
    status: str
    ended: str
    details: str
    pending_at: str
    bytes_sent: int
    bytes_received: int


class Control:
    """A connection to a SuperLink, with methods for queries and commands."""

    def __init__(self, client: ControlHttpClient) -> None:
        """Wrap Flower's client."""
        self._client = client

    def nodes(self) -> list[Node]:
        """Return all nodes that are registered."""
        answer = _ask(self._client.ListNodes, ListNodesRequest())
        return [
            Node(node.node_id, node.name, node.public_key, node.location, node.status, node.online_until)
            for node in answer.nodes_info
            if node.status != "unregistered"
        ]

    def register(self, name: str, key: bytes, location: str | None) -> None:
        """Register a node's public key (PEM) under a name."""
        _ask(self._client.RegisterNode, RegisterNodeRequest(public_key=key, name=name, location=location))

    def unregister(self, identifier: int) -> None:
        """Unregister a node; its requests are refused from then on."""
        _ask(self._client.UnregisterNode, UnregisterNodeRequest(node_id=identifier))

    def runs(self) -> list[Run]:
        """Return all runs, with the newest last."""
        answer = _ask(self._client.ListRuns, ListRunsRequest())
        return sorted((_read_run(run) for run in answer.run_dict.values()), key=lambda run: run.pending_at)

    def start(self, bundle: bytes, config: Mapping[str, str]) -> int:
        """Start a run of an app bundle and return its number."""
        request = StartRunRequest(
            fab=fab_to_proto(Fab(sha256(bundle).hexdigest(), bundle, {})),
            override_config=user_config_to_proto(dict(config)),
        )
        answer = _ask(self._client.StartRun, request)
        if not answer.run_id:
            raise ControlError("SuperLink started no run; see its log")
        return int(answer.run_id)

    def stop(self, identifier: int) -> bool:
        """End a run; return whether SuperLink ended one."""
        return bool(_ask(self._client.StopRun, StopRunRequest(run_id=identifier)).success)


@contextmanager
def open_control(port: int, authority: Path) -> Iterator[Control]:
    """Connect to the SuperLink on this machine; `authority` is the kit's ca.crt."""
    client = ControlHttpClient.from_server_address(
        server_address=f"127.0.0.1:{port}", insecure=False, root_certificates=authority.read_bytes(), interceptors=[]
    )
    try:
        yield Control(client)
    finally:
        client.close()


def _ask(method: Any, request: Any) -> Any:
    try:
        return method(request)
    except httpx.HTTPStatusError as error:
        raise ControlDeclinedError(
            f"SuperLink declines ({error.response.status_code}): {error.response.text[:200]}"
        ) from error
    except FlowerError as error:
        raise ControlDeclinedError(f"SuperLink declines: {error}") from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise ControlError(f"SuperLink does not answer ({type(error).__name__})") from error


def _read_run(run: Any) -> Run:
    config = {key: value.string for key, value in run.override_config.items()}
    return Run(
        identifier=run.run_id,
        name=config.get("run", ""),
        status=run.status.status,
        ended=run.status.sub_status if run.status.status == "finished" else "",
        details=run.status.details,
        pending_at=run.pending_at,
        bytes_sent=run.bytes_sent,
        bytes_received=run.bytes_recv,
    )
