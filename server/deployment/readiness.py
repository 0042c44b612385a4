"""From a SuperLink that has just been started to one that runs may be submitted to.

What its predecessor was running is ended, and the sites are registered. Only then does ready.json say so, and only then
is a run accepted: one that was submitted before would be taken for the predecessor's.
"""

import ssl
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from threading import Event

from ept_fed.errors import InputRefusedError
from ept_fed.storage.files import write_json
from server.deployment.control import ControlError, open_control
from server.deployment.registration import Registrations, register_sites
from server.deployment.server_kit import ServerKit

__all__ = ["is_ready", "make_ready", "withdraw"]

_READY_SECONDS = 120.0
_PAUSE_SECONDS = 0.5


def is_ready(kit: ServerKit) -> bool:
    """Tell whether the running SuperLink has its sites, and nothing left of an earlier one."""
    return (kit.state / "ready.json").exists()


def withdraw(kit: ServerKit) -> None:
    """Say that runs may not be submitted for now."""
    (kit.state / "ready.json").unlink(missing_ok=True)


def make_ready(kit: ServerKit, port: int, tell: Callable[[str], None], ended: Event) -> None:
    """Wait for SuperLink, prepare it, and say so; what stands in the way is tried again for a while, then told.

    Args:
        kit: the server's.
        port: SuperLink's, on loopback.
        tell: told what an operator has to know.
        ended: set once this SuperLink has ended: another one is not this call's to prepare.
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
                # Its ServerApp died with the SuperLink that had started it.
                control.stop(run.identifier)
                tell(f"run {run.name or run.identifier} was cut off; go on with: ept-fed server run --resume")
        return register_sites(kit, control)


def _announce(kit: ServerKit, port: int, changes: Registrations, tell: Callable[[str], None]) -> None:
    shut_out = ", ".join(name or "a nameless node" for name in changes.unregister.values())
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
