"""Flower's SuperNode over HTTP/2: `python -m client.supernode`, with SuperNode's own options.

SuperNode signs every request: some 640 bytes of key, signature and versions, of which only 170 are new. HTTP/2 sends
what it has sent before as an index. With a proxy that has no HTTP/2 it is HTTP/1.1, as Flower's own.

flwr 1.41 has no setting for it, so its client is replaced by the one below before SuperNode starts.
"""

import ssl
import sys
from threading import Lock
from typing import Any

import httpx
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient

__all__ = ["MultiplexedFleetClient", "main"]

# Between two polls, and between two heartbeats, a connection stays: a new one costs 3 kB of TLS. Not for longer than
# the proxy keeps it.
_KEEP_SECONDS = 60.0


class MultiplexedFleetClient(FleetHttpClient):
    """Flower's client of the Fleet API, with one connection for messages and one for heartbeats.

    The first is HTTP/2, where the server has it, with one request at a time: httpcore's is not safe for two threads,
    whose headers would be compressed in one order and sent in another. So a heartbeat would wait for as long as a
    payload takes: it has a connection to itself.
    """

    def __init__(self, base_url: str, *, verify: ssl.SSLContext | bool | str = True, **options: Any) -> None:
        """Prepare both connections; the arguments are those of Flower's client."""
        super().__init__(base_url, verify=verify, **options)
        self._heart = FleetHttpClient(base_url, verify=verify, **options)
        self._one_at_a_time = Lock()
        for client, http2 in ((self, True), (self._heart, False)):
            timeout = client._client.timeout
            client._client.close()
            limits = httpx.Limits(keepalive_expiry=_KEEP_SECONDS)
            client._client = httpx.Client(
                verify=verify, http2=http2, timeout=timeout, limits=limits, follow_redirects=True
            )

    def SendNodeHeartbeat(self, request: SendNodeHeartbeatRequest) -> SendNodeHeartbeatResponse:  # noqa: N802 - Flower's
        """Send a heartbeat over its own connection."""
        return self._heart.SendNodeHeartbeat(request)

    def close(self) -> None:
        """Close both connections."""
        super().close()
        self._heart.close()

    def _send(self, context: ProtobufRequestContext, *, stream: bool = False) -> httpx.Response:
        with self._one_at_a_time:
            return super()._send(context, stream=stream)


def main() -> None:
    """Run Flower's SuperNode until it is told to end."""
    fleet_http_connection.FleetHttpClient = MultiplexedFleetClient
    sys.argv[0] = "flower-supernode"
    flower_supernode()


if __name__ == "__main__":
    main()
