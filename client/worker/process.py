"""The worker process, which listens on two Unix sockets: one for SuperNode's app, one for people at the site.

python -m client.worker.process KIT
"""

import fcntl
import grp
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore, Thread
from types import FrameType

from client.gate.interface import GateInterface
from client.gate.open_gate import open_gate
from client.worker.credentials import read_credentials
from client.worker.unix_sockets import receive_frame, serve_status, status_path
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.validation.load_site import SiteSettings, check_site, load_site_settings

__all__ = ["bind_socket", "bind_status", "serve_site"]

_MAX_CONNECTIONS = 16
_READ_SECONDS = 60.0
_SECOND = 1.0

_log = logging.getLogger(__name__)


def serve_site(kit: Path, make_gate: Callable[[SiteSettings, Path], GateInterface] = open_gate) -> None:
    """Serve the site of a kit until SIGTERM or SIGINT.

    Raises:
        InputRefusedError: with the problems of site.yaml, its paths or the gate; if another worker is running.
    """
    parent = os.getppid()
    settings = load_site_settings(kit / "site.yaml")
    problems = check_site(settings)
    if problems:
        raise InputRefusedError(problems)
    gate = make_gate(settings, kit)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    with bind_socket(settings) as listener, bind_status(settings) as status_listener, _removed_at_the_end(settings):
        import torch

        from client.worker.worker import Worker

        if settings.worker.threads is not None:
            torch.set_num_threads(settings.worker.threads)
        worker = Worker(settings, gate, credentials=partial(read_credentials, kit))
        stopped = socket.socketpair()

        def stop(_signal: int, _frame: FrameType | None) -> None:
            stopped[1].send(b"x")

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        Thread(target=_accept, args=(listener, worker.answer), name="accept", daemon=True).start()
        Thread(target=serve_status, args=(status_listener, worker.status), name="status", daemon=True).start()
        _log.info("%s listens at %s", settings.site, settings.worker.socket)
        _wait(stopped[0], parent, gate)
        _log.info("%s stops", settings.site)
    logging.shutdown()
    sys.stdout.flush()
    # Exit without waiting for a training in progress: its state is written in one step, or not at all.
    os._exit(0)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End a worker that is still loading; the exception closes all open contexts."""
    raise SystemExit(0)


@contextmanager
def _removed_at_the_end(settings: SiteSettings) -> Iterator[None]:
    try:
        yield
    finally:
        for path in (settings.worker.socket, status_path(settings.worker.socket)):
            path.unlink(missing_ok=True)


def bind_socket(settings: SiteSettings) -> socket.socket:
    """Return a socket that listens at the path in the settings, in a folder that only its owner or group can enter.

    The socket of a worker that was killed is replaced, but never that of a running worker: a running worker holds a
    lock, which the system releases when the process ends.

    Raises:
        InputRefusedError: if another worker is running, or the group does not exist or the user is not in it.
    """
    path, group = settings.worker.socket, settings.worker.socket_group
    _make_private(path.parent, for_group=group is not None)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        fix = "another worker is running there; stop it first, or give this site its own socket"
        raise InputRefusedError([Problem("worker.socket", str(path), fix)]) from error
    # The lock is never closed, so that this process holds it until it ends.
    listener = _bind_private(path)
    if group is not None:
        try:
            number = grp.getgrnam(group).gr_gid
            os.chown(path, -1, number)
            os.chown(path.parent, -1, number)
        except (KeyError, PermissionError) as error:
            fix = "is not a group of this user; create it and add the users of worker and SuperNode"
            raise InputRefusedError([Problem("worker.socket_group", group, fix)]) from error
        path.chmod(0o660)
        path.parent.chmod(0o750)
    listener.listen(_MAX_CONNECTIONS)
    return listener


def bind_status(settings: SiteSettings) -> socket.socket:
    """Return the socket for the worker's status; only the worker's user may use it, even if the other has a group.

    Call it only after `bind_socket`, because it replaces an existing socket.
    """
    listener = _bind_private(status_path(settings.worker.socket))
    listener.listen(_MAX_CONNECTIONS)
    return listener


def _bind_private(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    return listener


def _make_private(folder: Path, *, for_group: bool) -> None:
    """Make the socket's folder, or check that no other user can enter an existing one.

    Raises:
        InputRefusedError: if other users could enter it; its permissions are not changed, as others may use the folder.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    others = 0o007 if for_group else 0o077
    if found.st_uid != os.getuid() or found.st_mode & others:
        fix = f"can be entered by other users; use a folder of its own, or: chmod {'750' if for_group else '700'} it"
        raise InputRefusedError([Problem("worker.socket", str(folder), fix)])


def _accept(listener: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    """Answer connections for ever; a temporary lack of descriptors, memory or threads must not end the loop."""
    free = BoundedSemaphore(_MAX_CONNECTIONS)

    def serve(connection: socket.socket) -> None:
        try:
            _serve(connection, answer)
        finally:
            free.release()

    while True:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            _log.warning("no connection can be accepted: %s", error)
            time.sleep(_SECOND)
            continue
        if not free.acquire(blocking=False):
            connection.close()
            continue
        try:
            Thread(target=serve, args=(connection,), name="serve", daemon=True).start()
        except RuntimeError as error:
            _log.warning("a connection is refused: %s", error)
            free.release()
            connection.close()


def _serve(connection: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    """Answer one frame; a client that disconnects during training does not stop the worker."""
    with connection:
        connection.settimeout(_READ_SECONDS)
        try:
            connection.sendall(answer(_receive(connection)))
        except (OSError, EOFError) as error:
            _log.warning("a client disconnected: %s", error)


def _receive(connection: socket.socket) -> bytes:
    """Return the received frame; empty bytes for an invalid prefix, which the worker refuses and records."""
    try:
        return receive_frame(connection)
    except MessageRefusedError:
        return b""


def _wait(stopped: socket.socket, parent: int, gate: GateInterface) -> None:
    """Wait for a signal, or for the end of the parent process; an orphaned worker would block the next one.

    Also return if the gate can record nothing more: the next start repairs the ledger, or reports its fault.
    """
    stopped.settimeout(_SECOND)
    while os.getppid() == parent:
        if gate.ended:
            _log.error("nothing can be recorded any more, so nothing may pass; see the log above for the reason")
            return
        try:
            stopped.recv(1)
        except TimeoutError:
            continue
        return
    _log.warning("the process that started this worker has ended")


def main() -> None:
    """Serve the kit given as the only argument; exit with 2 if it is refused."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        serve_site(Path(sys.argv[1]))
    except InputRefusedError as refusal:
        _log.error("nothing was started:\n%s", refusal)
        sys.exit(2)


if __name__ == "__main__":
    main()
