"""Flower's SuperNode over HTTP/2: `python -m client.deployment.supernode`, with SuperNode's own options.

SuperNode adds about 640 bytes of key, signature and versions to every request, of which only 170 bytes are new. HTTP/2
replaces repeated headers by an index. With a proxy without HTTP/2, HTTP/1.1 is used, as in Flower's own client.

flwr 1.41 has no setting for HTTP/2, so its client is replaced by the one below before SuperNode starts.
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

# A connection is kept between two polls and between two heartbeats, because a new one costs 3 kB of TLS. The time must
# not exceed the time for which the proxy keeps the connection.
_KEEP_SECONDS = 60.0
# A proxy ends an HTTP/2 connection after a limit (nginx: 1,000 requests or one hour) and announces this before its last
# answer. httpcore then treats that answer as lost, so the client closes the connection before the proxy's limit.
_MAX_REQUESTS = 500
_MAX_SECONDS = 900.0
_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class SingleFleetClient(FleetHttpClient):
    """Flower's client of the Fleet API over one connection, with HTTP/2 if possible, and one request at a time.

    httpcore's HTTP/2 is not thread-safe: two threads could compress their headers in one order and send in another.
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
                    # Flower retries, but not after an error with "ssl" in its text: it assumes a certificate error.
                    raise httpx.ReadError("the other side ended the connection") from lost
                raise

    def _renew(self) -> None:
        self._client.close()
        self._client = self._open()


class MultiplexedFleetClient(SingleFleetClient):
    """A client with a second connection for heartbeats, which would otherwise wait for the transfer of a payload."""

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
    """Return whether the TLS connection was interrupted, for example because the proxy was killed."""
    # httpcore keeps a wrapped exception as its only argument, and its connection pool drops the cause.
    while isinstance(error, httpx.TransportError | httpcore.NetworkError):
        error = error.__cause__ or next(iter(error.args), None)
    return isinstance(error, _CUT_OFF)


def main() -> None:
    """Run Flower's SuperNode until it ends."""
    fleet_http_connection.FleetHttpClient = MultiplexedFleetClient
    sys.argv[0] = "flower-supernode"
    flower_supernode()
    # SuperNode returns when an error ends its loop, but its threads would keep the process alive without any work.
    flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, "The connection to the SuperLink has failed.")


if __name__ == "__main__":
    main()
