"""How a site's worker is, for a person at the site: told on a socket of its own, which nobody but its user may open.

The worker's other socket is open to SuperNode and to code of the server's in it, so it answers nothing of this. Here
nothing is asked and nothing is read: whoever may connect is sent the status, and the connection ends.

What it does not protect against: under one user for both, SuperNode's code can connect here too, and read the images.
"""

import json
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from client.worker.unix_socket import WorkerAwayError

__all__ = ["Activity", "WorkerStatus", "ask_status", "serve_status", "status_path"]

Activity = Literal["idle", "introduce", "train", "secure aggregation", "evaluate"]

_CHUNK = 1 << 16
_SEND_SECONDS = 1.0
_PAUSE_SECONDS = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker says of itself.

    Attributes:
        site: its name.
        code: version.
        pid: of the worker.
        started: when, in seconds since 1970.
        activity: what it does now.
        run: the run that holds the worker, None if it is free for any.
        round: the last round asked for in that run.
        last_message: when the last message came, in seconds since 1970.
        runs: all runs of which the site keeps a state.
        backbone_digest: of the backbone in memory.
        training_images: of the data in memory.
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


_STATUS: TypeAdapter[WorkerStatus] = TypeAdapter(WorkerStatus)


def status_path(worker_socket: Path) -> Path:
    """Return where the status is told: run/worker.sock -> run/worker.sock.st."""
    return worker_socket.with_name(f"{worker_socket.name}.st")


def serve_status(listener: socket.socket, status: Callable[[], WorkerStatus]) -> None:
    """Send the status to whoever connects, for ever."""
    while True:
        try:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(_SEND_SECONDS)
                connection.sendall(json.dumps(asdict(status())).encode())
        except Exception as error:  # noqa: BLE001 - the next who asks must have an answer
            _log.warning("the status could not be told: %s", error)
            time.sleep(_PAUSE_SECONDS)


def ask_status(worker_socket: Path, *, seconds: float) -> WorkerStatus:
    """Return how the worker is.

    Args:
        worker_socket: the path in the site's settings.
        seconds: how long to wait for each part of the answer.

    Raises:
        PermissionError: if this is not the worker's user.
        WorkerAwayError: if there is no worker, or one of another version.
    """
    content = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(str(status_path(worker_socket)))
            while chunk := connection.recv(_CHUNK):
                content += chunk
        return _STATUS.validate_json(bytes(content))
    except PermissionError:
        raise
    except (OSError, ValidationError) as error:
        raise WorkerAwayError("the site's worker does not say how it is; the site has to start it") from error
