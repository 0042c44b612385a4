"""The worker's two Unix sockets: frames for SuperNode's app, and the status for people at the site.

Frames: SuperNode's app sends one whole frame per connection and gets one back. The socket is open to SuperNode, and so
to the server's code in it.

Status: a separate socket that only the worker's user may open. It reads nothing: it sends the status to each client
that connects, and closes the connection.

Not protected against: if worker and SuperNode run as the same user, SuperNode's code can connect here too, and read the
images.
"""

import json
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ept_fed.protocol.frame_prefix import PREFIX_BYTES, read_prefix

__all__ = [
    "Activity",
    "WorkerAwayError",
    "WorkerStatus",
    "ask_status",
    "ask_worker",
    "receive_frame",
    "serve_status",
    "status_path",
]

Activity = Literal["idle", "introduce", "train", "secure aggregation", "evaluate"]

_CHUNK = 1 << 20
_CONNECT_SECONDS = 10.0
_SEND_SECONDS = 1.0
_PAUSE_SECONDS = 0.1

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class WorkerStatus:
    """The status of a worker.

    Attributes:
        site: the site's name.
        code: version of ept-fed.
        pid: process id of the worker.
        started: start time, in seconds since 1970.
        activity: current activity.
        run: the run that holds the worker; None if the worker is free for any run.
        round: the last round requested in that run.
        last_message: time of the last message, in seconds since 1970.
        runs: all runs that the site has agreed to.
        backbone_digest: digest of the backbone in memory.
        training_images: number of training images in memory.
    """

    site: str
    code: str
    pid: int
    started: float
    activity: Activity
    run: str | None
    round: int | None
    last_message: float | None
    runs: tuple[str, ...]
    backbone_digest: str | None
    training_images: int | None


def status_path(worker_socket: Path) -> Path:
    """Return the path of the status socket: run/worker.sock -> run/worker.sock.st."""
    return worker_socket.with_name(f"{worker_socket.name}.st")


def serve_status(listener: socket.socket, status: Callable[[], WorkerStatus]) -> None:
    """Send the status to every client that connects, for ever."""
    while True:
        try:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(_SEND_SECONDS)
                connection.sendall(json.dumps(asdict(status())).encode())
        except Exception as error:  # noqa: BLE001 - the next client must get an answer
            _log.warning("the status could not be sent: %s", error)
            time.sleep(_PAUSE_SECONDS)


def ask_status(worker_socket: Path, *, seconds: float) -> WorkerStatus:
    """Return the status of the worker.

    Args:
        worker_socket: the path in the site's settings.
        seconds: how long to wait for each part of the answer.

    Raises:
        PermissionError: if this process does not run as the worker's user.
        WorkerAwayError: if there is no worker, or it has another version.
    """
    # Slow to import, and the app that SuperNode starts for every message needs only the frames.
    from pydantic import TypeAdapter, ValidationError

    content = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(str(status_path(worker_socket)))
            while chunk := connection.recv(_CHUNK):
                content += chunk
        return TypeAdapter(WorkerStatus).validate_json(bytes(content))
    except PermissionError:
        raise
    except (OSError, ValidationError) as error:
        raise WorkerAwayError("the site's worker does not report its status; the site has to start it") from error
