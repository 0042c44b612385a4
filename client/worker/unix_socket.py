"""The Unix socket between SuperNode's app and the site's worker: whole frames, one question per connection."""

import socket
from pathlib import Path

from ept_fed.protocol.framing import PREFIX_BYTES, read_prefix

__all__ = ["WorkerAwayError", "ask_worker", "receive_frame"]

_CHUNK = 1 << 20
_CONNECT_SECONDS = 10.0


class WorkerAwayError(ConnectionError):
    """No worker answers at the socket, or it ended in the middle of an answer; the text names no path."""


def ask_worker(path: Path, question: bytes, *, seconds: float | None) -> bytes:
    """Send a frame to the worker and return the frame that it answers.

    Args:
        path: of the socket.
        question: a whole frame; of less, the worker would wait for the rest.
        seconds: how long to wait for the answer; None waits as long as the worker lives.

    Raises:
        WorkerAwayError: if there is no worker, or it went away.
        MessageRefusedError: if its answer is no frame.
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
    """Read one frame; memory grows with what arrives, not with what is promised.

    Raises:
        MessageRefusedError: for a prefix of no frame, or one too large.
        EOFError: if the other side closes before the frame is whole.
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
            raise EOFError(f"{len(content)} of {size} bytes came")
        content += chunk
    return bytes(content)
