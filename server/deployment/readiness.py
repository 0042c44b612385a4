"""Preparation of a SuperLink that has just been started, until runs may be submitted to it.

The runs of the previous SuperLink are ended, and the sites are registered. Then ready.json is written, and only then is
a run accepted. A run that is submitted earlier would be ended with the runs of the previous SuperLink.
"""

import ssl
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from threading import Event

from ept_fed.errors import InputRefusedError
from ept_fed.storage.files import write_json
from server.deployment.registration import Registrations, register_sites
from server.deployment.server_kit import ServerKit
from server.deployment.superlink_control import ControlError, open_control

__all__ = ["is_ready", "make_ready", "withdraw"]

_READY_SECONDS = 120.0
_PAUSE_SECONDS = 0.5


def is_ready(kit: ServerKit) -> bool:
    """Return whether the running SuperLink has its sites, and the runs of an earlier one are ended."""
    return (kit.state / "ready.json").exists()


def withdraw(kit: ServerKit) -> None:
    """Remove ready.json, so that no run can be submitted."""
    (kit.state / "ready.json").unlink(missing_ok=True)


def make_ready(kit: ServerKit, port: int, tell: Callable[[str], None], ended: Event) -> None:
    """Wait for SuperLink, prepare it, and write ready.json; errors are retried until a time limit, then reported.

    Args:
        kit: the server's kit.
        port: SuperLink's port on loopback.
        tell: called with messages for the operator.
        ended: set when this SuperLink has ended; the call then stops, because another call prepares the next SuperLink.
    """
    withdraw(kit)
    end = time.monotonic() + _READY_SECONDS
    problem = "does not answer"
    while not ended.wait(_PAUSE_SECONDS) and time.monotonic() < end:
        try:
            if _is_healthy(port, kit):
                changes = _prepare(kit, port, tell)
                if not ended.is_set():
                    _announce(kit, port, changes, tell)
                return
        except InputRefusedError as error:
            tell(f"superlink: the sites cannot be registered: {error}")
            return
        except (ControlError, OSError, HTTPException) as error:
            problem = str(error) or type(error).__name__
    if ended.is_set():
        return
    tell(f"superlink: not ready after {_READY_SECONDS:g} s: {problem}; see its log")


def _prepare(kit: ServerKit, port: int, tell: Callable[[str], None]) -> Registrations:
    with open_control(port, kit.folder / "tls" / "ca.crt") as control:
        for run in control.runs():
            if not run.ended:
                # The ServerApp of this run ended with the SuperLink that started it.
                control.stop(run.identifier)
                tell(f"run {run.name or run.identifier} was interrupted; continue with: ept-fed server run --resume")
        return register_sites(kit, control)


def _announce(kit: ServerKit, port: int, changes: Registrations, tell: Callable[[str], None]) -> None:
    shut_out = ", ".join(name or "a node without a name" for name in changes.unregister.values())
    if shut_out:
        tell(f"no longer registered: {shut_out}")
    for name, why in changes.declined.items():
        tell(f"{name} cannot take part, {why}; give it new keys: ept-fed provision renew {name} --new-keys")
    admitted = sorted(name for name, site in kit.sites.items() if not site.revoked and name not in changes.declined)
    write_json(kit.state / "ready.json", {"schema": 1, "superlink_port": port, "sites": admitted})
    tell(f"ready: {len(admitted)} sites may take part: {', '.join(admitted)}")


def _is_healthy(port: int, kit: ServerKit) -> bool:
    context = ssl.create_default_context(cafile=str(kit.folder / "tls" / "ca.crt"))
    try:
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/health", timeout=2, context=context) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
