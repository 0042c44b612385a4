"""The Unix socket between SuperNode's app and the site's worker: one frame and its answer per connection."""

import socket
from pathlib import Path

from ept_fed.protocol.framing import PREFIX_BYTES, read_prefix

__all__ = ["WorkerAwayError", "ask_worker", "receive_frame"]

_CHUNK = 1 << 20
_CONNECT_SECONDS = 10.0


class WorkerAwayError(ConnectionError):
    """No worker answers at the socket, or the connection ended before the answer was complete; the text has no path."""


def ask_worker(path: Path, question: bytes, *, seconds: float | None) -> bytes:
    """Send a frame to the worker and return the frame that it answers.

    Args:
        path: path of the socket.
        question: a complete frame; with an incomplete frame, the worker would wait for the rest.
        seconds: time limit for the answer; None waits as long as the worker runs.

    Raises:
        WorkerAwayError: if there is no worker, or it ended before the answer was complete.
        MessageRefusedError: if its answer is not a frame.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_CONNECT_SECONDS)
            connection.connect(str(path))
            connection.settimeout(seconds)
            connection.sendall(question)
            return receive_frame(connection)
    except (OSError, EOFError) as error:
        raise WorkerAwayError("the site's worker does not answer; the site has to start it") from error


def receive_frame(connection: socket.socket) -> bytes:
    """Read one frame; memory grows with the bytes that arrive, not with the size that the prefix states.

    Raises:
        MessageRefusedError: if the prefix is not that of a frame, or the frame is too large.
        EOFError: if the other side closes before the frame is complete.
        OSError: from the socket.
    """
    prefix = _receive(connection, PREFIX_BYTES)
    head, body = read_prefix(prefix)
    return prefix + _receive(connection, head + body)


def _receive(connection: socket.socket, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        chunk = connection.recv(min(_CHUNK, size - len(content)))
        if not chunk:
            raise EOFError(f"only {len(content)} of {size} bytes arrived")
        content += chunk
    return bytes(content)
