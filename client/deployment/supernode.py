"""Flower's SuperNode over HTTP/2: `python -m client.deployment.supernode`, with SuperNode's own options.

SuperNode signs every request: some 640 bytes of key, signature and versions, of which only 170 are new. HTTP/2 sends
what it has sent before as an index. With a proxy that has no HTTP/2 it is HTTP/1.1, as Flower's own.

flwr 1.41 has no setting for it, so its client is replaced by the one below before SuperNode starts.
"""

import ssl
import sys
import time
from threading import Lock
from typing import Any

import httpcore
import httpx
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.supercore.exit import ExitCode, flwr_exit
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient

__all__ = ["MultiplexedFleetClient", "main"]

# Between two polls, and between two heartbeats, a connection stays: a new one costs 3 kB of TLS. Not for longer than
# the proxy keeps it.
_KEEP_SECONDS = 60.0
# A proxy that ends a connection of HTTP/2 (nginx after 1,000 requests or an hour) says so before its last answer, which
# httpcore then takes for lost. So a connection is left before anybody ends it.
_MAX_REQUESTS = 500
_MAX_SECONDS = 900.0
_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class SingleFleetClient(FleetHttpClient):
    """Flower's client of the Fleet API over one connection: HTTP/2, where the server has it, one request at a time.

    httpcore's HTTP/2 is not safe for two threads, whose headers would be compressed in one order and sent in another.
    """

    _client: httpx.Client

    def __init__(self, base_url: str, *, verify: ssl.SSLContext | bool | str = True, **options: Any) -> None:
        """Prepare the connection; the arguments are those of Flower's client."""
        super().__init__(base_url, verify=verify, **options)
        self._verify, self._timeout = verify, self._client.timeout
        self._client.close()
        self._client = self._open()
        self._one_at_a_time = Lock()

    def _open(self) -> httpx.Client:
        self._requests, self._since = 0, time.monotonic()
        limits = httpx.Limits(keepalive_expiry=_KEEP_SECONDS)
        return httpx.Client(
            verify=self._verify, http2=True, timeout=self._timeout, limits=limits, follow_redirects=True
        )

    def _send(self, context: ProtobufRequestContext, *, stream: bool = False) -> httpx.Response:
        with self._one_at_a_time:
            if self._requests >= _MAX_REQUESTS or time.monotonic() - self._since >= _MAX_SECONDS:
                self._renew()
            self._requests += 1
            try:
                return super()._send(context, stream=stream)
            except httpx.TransportError as lost:
                self._renew()
                if _is_cut_off(lost):
                    # Flower tries again, except after an error whose text says "ssl", which it takes for a certificate.
                    raise httpx.ReadError("the other side ended the connection") from lost
                raise

    def _renew(self) -> None:
        self._client.close()
        self._client = self._open()


class MultiplexedFleetClient(SingleFleetClient):
    """One connection for messages and one for heartbeats, which would otherwise wait for as long as a payload takes."""

    def __init__(self, base_url: str, *, verify: ssl.SSLContext | bool | str = True, **options: Any) -> None:
        """Prepare both connections; the arguments are those of Flower's client."""
        super().__init__(base_url, verify=verify, **options)
        self._heart = SingleFleetClient(base_url, verify=verify, **options)

    def SendNodeHeartbeat(self, request: SendNodeHeartbeatRequest) -> SendNodeHeartbeatResponse:  # noqa: N802 - Flower's
        """Send a heartbeat over its own connection."""
        return self._heart.SendNodeHeartbeat(request)

    def close(self) -> None:
        """Close both connections."""
        super().close()
        self._heart.close()


def _is_cut_off(error: object) -> bool:
    """Tell whether TLS ended in the middle, as when a proxy is killed."""
    # httpcore keeps what it wraps as its only argument, and forgets the cause on its way through the pool.
    while isinstance(error, httpx.TransportError | httpcore.NetworkError):
        error = error.__cause__ or next(iter(error.args), None)
    return isinstance(error, _CUT_OFF)


def main() -> None:
    """Run Flower's SuperNode until it is told to end."""
    fleet_http_connection.FleetHttpClient = MultiplexedFleetClient
    sys.argv[0] = "flower-supernode"
    flower_supernode()
    # It returns when an error ended its loop; its threads would keep a process that asks for nothing any more.
    flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, "The connection to the SuperLink was given up.")


if __name__ == "__main__":
    main()
