"""The proxy between hospitals and SuperLink: an allow-list of paths, TLS for the server's name, and a byte count.

SuperLink has one port for all its APIs, and only the Fleet paths require a node's signature. SuperLink therefore
listens only on loopback, and the proxy forwards only the paths that are listed here.
"""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from ept_fed.config.consortium import is_address
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.storage.files import write_text
from server.deployment.server_kit import ServerKit
from server.render_templates import render

__all__ = ["PATHS", "end_proxy", "find_nginx", "nginx_command", "write_proxy_files"]

PATHS = (
    *(
        f"/v1/fleet/{act}"
        for act in (
            "activate-node",
            "deactivate-node",
            "send-node-heartbeat",
            "pull-messages",
            "push-messages",
            "pull-object",
            "push-object",
            "confirm-message-received",
            "get-run",
            "get-fab",
        )
    ),
    "/health",
)
_SYSTEM_PLACES = "/usr/sbin:/usr/local/sbin:/sbin:/opt/homebrew/bin"


def find_nginx() -> str:
    """Return the path of nginx.

    Raises:
        InputRefusedError: if nginx is not installed; the text states how to install it.
    """
    found = shutil.which("nginx") or shutil.which("nginx", path=_SYSTEM_PLACES)
    if found is None:
        fix = (
            "is not installed; install it (apt install nginx-light, dnf install nginx, brew install nginx; its own "
            "service is not needed), or use another proxy: --proxy none, and see state/proxy/Caddyfile"
        )
        raise InputRefusedError([Problem("nginx", "", fix)])
    return found


def nginx_command(nginx: str, kit: ServerKit) -> tuple[str, ...]:
    """Return the command that starts the proxy in the foreground."""
    folder = kit.state / "proxy"
    return (nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr")


def write_proxy_files(kit: ServerKit, superlink_port: int, *, nginx: str | None) -> None:
    """Write nginx.conf and Caddyfile, and let nginx test its configuration.

    Raises:
        InputRefusedError: with the message of nginx, for example about a port that this user must not open.
    """
    server, folder = kit.federation.server, kit.state / "proxy"
    if any(character in str(kit.folder) for character in " ;{}\"'$\\"):
        fix = "has a space, quote, brace or similar in its path, which nginx.conf does not support; move it"
        raise InputRefusedError([Problem("KIT", str(kit.folder), fix)])
    ipv6 = is_address(server.host) and ":" in server.host
    words = {
        "kit": str(kit.folder),
        "host": f"[{server.host}]" if ipv6 else server.host,
        "port": server.port,
        "listen": f"[::]:{server.port}" if ipv6 else f"{_interface(server.host)}{server.port}",
        "superlink_port": superlink_port,
        "paths": PATHS,
    }
    write_text(folder / "Caddyfile", render("server/Caddyfile.j2", words))
    write_text(folder / "nginx.conf", render("server/nginx.conf.j2", words))
    if nginx is None:
        return
    tested = subprocess.run(
        [*nginx_command(nginx, kit), "-t"], capture_output=True, text=True, check=False, timeout=60, cwd=folder
    )
    if tested.returncode:
        fix = f"is refused by nginx -t: {' '.join(tested.stderr.split())[-300:]}"
        raise InputRefusedError([Problem("nginx.conf", str(folder / "nginx.conf"), fix)])


def end_proxy(folder: Path) -> None:
    """End the nginx processes whose working directory is `folder`.

    They cannot be found by a variable in their environment, because nginx overwrites it.
    """
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if link.resolve() == folder.resolve() and (link.parent / "comm").read_text().strip() == "nginx":
                os.kill(int(link.parent.name), signal.SIGKILL)


def _interface(host: str) -> str:
    """Return the interface for nginx.conf: loopback for a federation on this machine, else empty for all interfaces."""
    return "127.0.0.1:" if host in ("localhost", "127.0.0.1") else ""
