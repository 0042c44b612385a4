"""The worker as a process, listening on its Unix sockets: one for SuperNode's app, one for people at the site.

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
from client.gate.open import open_gate
from client.worker.credentials import read_credentials
from client.worker.status import serve_status, status_path
from client.worker.unix_socket import receive_frame
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
        InputRefusedError: with what is wrong with site.yaml, its paths or the door; if another worker is alive.
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
    # A training must not hold up the end: its state is written in one step, or not at all.
    os._exit(0)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End a worker that is still loading through every `with`."""
    raise SystemExit(0)


@contextmanager
def _removed_at_the_end(settings: SiteSettings) -> Iterator[None]:
    try:
        yield
    finally:
        for path in (settings.worker.socket, status_path(settings.worker.socket)):
            path.unlink(missing_ok=True)


def bind_socket(settings: SiteSettings) -> socket.socket:
    """Return a socket that listens where the settings say, in a folder that only its owner, or group, can enter.

    The socket of a worker that was killed is replaced; that of a living one never is: it holds a lock, which the
    system takes back from the dead.

    Raises:
        InputRefusedError: if another worker is alive, or the group is unknown or not the user's.
    """
    path, group = settings.worker.socket, settings.worker.socket_group
    _make_private(path.parent, for_group=group is not None)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        fix = "another worker is alive there; stop it first, or give this site a socket of its own"
        raise InputRefusedError([Problem("worker.socket", str(path), fix)]) from error
    # The lock is never closed: it is this process's until it ends.
    listener = _bind_private(path)
    if group is not None:
        try:
            number = grp.getgrnam(group).gr_gid
            os.chown(path, -1, number)
            os.chown(path.parent, -1, number)
        except (KeyError, PermissionError) as error:
            fix = "is no group that this user belongs to; create it and add the users of worker and SuperNode"
            raise InputRefusedError([Problem("worker.socket_group", group, fix)]) from error
        path.chmod(0o660)
        path.parent.chmod(0o750)
    listener.listen(_MAX_CONNECTIONS)
    return listener


def bind_status(settings: SiteSettings) -> socket.socket:
    """Return the socket on which the worker says how it is: its user's alone, whatever group may use the other one.

    Only a worker that `bind_socket` let through may call it: the socket that is there is replaced.
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
    """Make the socket's folder, or see that the one there is is nobody else's.

    Raises:
        InputRefusedError: if others could enter it; a folder that somebody else may use is not ours to change.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    others = 0o007 if for_group else 0o077
    if found.st_uid != os.getuid() or found.st_mode & others:
        fix = f"can be entered by other users; use a folder of its own, or: chmod {'750' if for_group else '700'} it"
        raise InputRefusedError([Problem("worker.socket", str(folder), fix)])


def _accept(listener: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    """Answer whoever connects, for ever: want of descriptors, memory or threads passes, deafness would not."""
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
            _log.warning("nobody can be let in: %s", error)
            time.sleep(_SECOND)
            continue
        if not free.acquire(blocking=False):
            connection.close()
            continue
        try:
            Thread(target=serve, args=(connection,), name="serve", daemon=True).start()
        except RuntimeError as error:
            _log.warning("a client is turned away: %s", error)
            free.release()
            connection.close()


def _serve(connection: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    """Answer one question; a client that went away while the worker trained is no reason to stop."""
    with connection:
        connection.settimeout(_READ_SECONDS)
        try:
            connection.sendall(answer(_receive(connection)))
        except (OSError, EOFError) as error:
            _log.warning("a client went away: %s", error)


def _receive(connection: socket.socket) -> bytes:
    """Return the frame that comes; of bytes that start none, nothing, which the worker refuses and records."""
    try:
        return receive_frame(connection)
    except MessageRefusedError:
        return b""


def _wait(stopped: socket.socket, parent: int, gate: GateInterface) -> None:
    """Wait for a signal, and end with the process that started this one: a worker alone would block the next.

    A worker whose door has ended is no use either: the next start mends its ledger, or says what is wrong with it.
    """
    stopped.settimeout(_SECOND)
    while os.getppid() == parent:
        if gate.ended:
            _log.error("nothing can be recorded any more, so nothing may pass; the log above says why")
            return
        try:
            stopped.recv(1)
        except TimeoutError:
            continue
        return
    _log.warning("the process that started this worker is gone")


def main() -> None:
    """Serve the kit named by the only argument; exit 2 if it is refused."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        serve_site(Path(sys.argv[1]))
    except InputRefusedError as refusal:
        _log.error("nothing was started:\n%s", refusal)
        sys.exit(2)


if __name__ == "__main__":
    main()
