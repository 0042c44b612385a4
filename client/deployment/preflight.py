"""The checks of `ept-fed site check`: all that can be verified before the first round, each with a proposed fix.

Each check is a function of the kit that returns its findings. It raises an exception only for an error in the check.
"""

import shutil
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Literal

import ept_fed
from client.deployment.service import describe_programs, find_service
from client.gate.open_gate import check_gate
from client.site.run_registry import RunRegistry
from client.worker.unix_sockets import WorkerAwayError, ask_status
from ept_fed.errors import InputRefusedError
from ept_fed.pki.check_kit import examine_kit
from ept_fed.pki.kit_layout import read_identity
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.validation.load_site import SiteSettings, check_site, join_proposal, load_site_settings

__all__ = ["Finding", "check_kit"]

State = Literal["ok", "notice", "failed", "unknown"]

# Seconds by which a node's clock may differ: flwr 1.41 accepts -5 to +305 s; the limits here have a margin.
MAX_AHEAD, MAX_BEHIND = 4.0, 300.0
LEAST_DISK_BYTES = 1 << 30
LEAST_GPU_BYTES = 2 << 30
_SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    """One line of the check: its subject, its result, and the proposed fix for a problem."""

    name: str
    state: State
    found: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the finding as a JSON-ready document."""
        return asdict(self)


def check_kit(kit: Path, tell: Callable[[Finding], None] = lambda _: None) -> tuple[Finding, ...]:
    """Check a site's kit and return all findings; `tell` is called with each finding at once.

    Raises:
        InputRefusedError: if site.yaml cannot be read.
    """
    settings = load_site_settings(kit / "site.yaml")
    found = []
    for check in _CHECKS:
        for finding in check(kit.resolve(), settings):
            tell(finding)
            found.append(finding)
    return tuple(found)


def _check_kit_files(kit: Path, settings: SiteSettings) -> Iterator[Finding]:
    """Check the same as `ept-fed doctor kit`: checksums, permissions, and certificates with their dates and keys."""
    try:
        describe_programs(kit, settings, ("worker", "node"))
        examined = examine_kit(kit, datetime.now(UTC))
    except InputRefusedError as refusal:
        yield from _refused("kit", refusal)
        return
    if examined.name != settings.site:
        fix = "use the kit of this site, or correct 'site' in site.yaml"
        yield Finding("kit", "failed", f"belongs to {examined.name}, but site.yaml to {settings.site}", fix)
    for fault in examined.faults:
        yield Finding("kit", "failed", f"{fault.field}: {fault.value}", fault.fix)
    for notice in examined.notices:
        yield Finding("kit", "notice", f"{notice.field}: {notice.value}", notice.fix)
    if not examined.faults:
        end = min(dates.not_after for dates in examined.certificates).date()
        yield Finding("kit", "ok", f"complete and private; valid until {end.isoformat()}")


def _check_policy(kit: Path, settings: SiteSettings) -> Iterator[Finding]:
    try:
        check_gate(settings, kit)
    except InputRefusedError as refusal:
        yield from _refused("policy", refusal)
    else:
        yield Finding("policy", "ok", str(settings.policy))


def _check_server(kit: Path, _settings: SiteSettings) -> Iterator[Finding]:
    """Request the server's health page through its proxy, on the same path as SuperNode's requests."""
    try:
        server = read_identity(kit).server
    except InputRefusedError as refusal:
        yield from _refused("server", refusal)
        return
    host, port = server.host, server.port
    address = f"{host}:{port}"
    try:
        context = ssl.create_default_context(cafile=str(kit / "tls" / "ca.crt"))
        connection = HTTPSConnection(host, port, timeout=_SECONDS, context=context)
        before = datetime.now(UTC)
        connection.request("GET", "/health")
        answer = connection.getresponse()
        after = datetime.now(UTC)
        connection.close()
    except ssl.SSLCertVerificationError as error:
        fix = "check this machine's clock; if it is right, tell the consortium: this may not be their server"
        yield Finding("server", "failed", f"{address}: {error.verify_message}", fix)
    except ssl.SSLError as error:
        yield Finding(
            "server",
            "failed",
            f"{address}: no TLS ({error.reason})",
            "a firewall or proxy interferes with TLS; ask your IT",
        )
    except socket.gaierror:
        yield Finding(
            "server", "failed", f"{host} has no address", "correct DNS, or ask the consortium for the server's name"
        )
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        fix = f"open the outgoing port {port} to {host}, or ask the consortium whether the server is up"
        yield Finding("server", "failed", f"{address}: {reason}", fix)
    else:
        if answer.status == 200:
            yield Finding("server", "ok", f"{address} answers")
        else:
            fix = "the proxy runs, but the server behind it does not; tell the consortium"
            yield Finding("server", "failed", f"{address} answers with {answer.status}", fix)
        yield _check_clock(answer.getheader("Date"), before, after)


def _check_clock(date: str | None, before: datetime, after: datetime) -> Finding:
    """Compare this machine's clock with the server's Date header, which was written between `before` and `after`.

    The header has a resolution of one second.
    """
    try:
        theirs = parsedate_to_datetime(date or "")
    except ValueError:
        theirs = None
    if theirs is None or theirs.tzinfo is None:
        return Finding("clock", "unknown", "the server does not send its time", "check that NTP runs")
    ahead = (before - theirs).total_seconds() - 1.0
    behind = (theirs - after).total_seconds()
    fix = "correct this machine's clock (NTP): the server refuses nodes with another time"
    if ahead > MAX_AHEAD:
        return Finding("clock", "failed", f"is at least {ahead:.0f} s ahead of the server's", fix)
    if behind > MAX_BEHIND:
        return Finding("clock", "failed", f"is at least {behind:.0f} s behind the server's", fix)
    return Finding("clock", "ok", "agrees with the server's")


def _check_registration(kit: Path, _settings: SiteSettings) -> Iterator[Finding]:
    """Read in SuperNode's log whether the server accepted its key, because no other request reveals it."""
    path = kit / "logs" / "node" / "supernode.log"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in reversed(lines):
        if "Failed to activate SuperNode" in line:
            fix = "send keys/node.pub to the consortium for registration; then start again"
            yield Finding("registration", "failed", "the server did not accept this node's key", fix)
            return
        if "SuperNode ID:" in line:
            yield Finding("registration", "ok", "the server accepted this node's key at the last start")
            return
    fix = "only SuperNode can check this: start it and check again"
    yield Finding("registration", "unknown", "SuperNode has not connected from this kit yet", fix)


def _check_worker(kit: Path, settings: SiteSettings) -> Iterator[Finding]:
    start = "ept-fed site start"
    running = find_service(kit)
    node = running.get("node")
    if "node" not in running:
        yield Finding("SuperNode", "failed", "was not started from this kit by ept-fed site start", start)
    elif node is None:
        yield Finding("SuperNode", "unknown", "belongs to another user; only that user can check it", start)
    else:
        yield Finding("SuperNode", "ok", f"kept running by process {node}")
    try:
        status = ask_status(settings.worker.socket, seconds=_SECONDS)
    except PermissionError:
        yield Finding("worker", "unknown", "answers only to its own user", "run this check as the worker's user")
        return
    except WorkerAwayError:
        yield Finding("worker", "failed", "does not report its status", start)
        return
    if (status.site, status.code) != (settings.site, ept_fed.__version__):
        found = f"is {status.site} with ept-fed {status.code}; expected {settings.site} with {ept_fed.__version__}"
        yield Finding("worker", "failed", found, "restart it")
    else:
        yield Finding("worker", "ok", f"process {status.pid}, {status.activity}")


def _check_backbone_and_data(_kit: Path, settings: SiteSettings) -> Iterator[Finding]:
    """Check weights and images with the settings of the last proposal, or only of site.yaml if there is none yet."""
    problems = check_site(settings)
    if problems:
        yield from _refused("site.yaml", InputRefusedError(problems))
        return
    registry = RunRegistry(settings.worker.state, settings.site)
    names = registry.names()
    data, seed = settings.data, 0
    if not names:
        yield Finding(
            "backbone", "unknown", "no run was proposed yet", "the first proposal names it; check again after it"
        )
    else:
        try:
            proposal = registry.find(names[0])
            experiment = join_proposal(settings, proposal)
            data, seed = experiment.data, experiment.data_seed
            from client.site.factory import load_backbone

            digest = load_backbone(experiment).digest
            yield Finding("backbone", "ok", f"{experiment.model.backbone}, SHA-256 {digest[:16]}… for run {names[0]}")
        except MessageRefusedError as refusal:
            yield Finding("backbone", "failed", str(refusal), "restore the state folder from the backup")
        except InputRefusedError as refusal:
            yield from _refused("backbone", refusal)
    from ept_fed.data.doctor import examine_data

    try:
        found = examine_data(data, seed)
    except InputRefusedError as refusal:
        yield from _refused("data", refusal)
        return
    counts = f"{found.images} images of {found.groups} groups, {len(found.classes)} classes"
    if found.clean:
        yield Finding("data", "ok", counts)
    else:
        faults = (
            f"{len(found.unreadable)} unreadable, {len(found.duplicates)} sets of equal images, "
            f"{len(found.straddling_splits)} groups in two splits, {len(found.refusals)} expected refusals"
        )
        yield Finding("data", "failed", f"{counts}; {faults}", "list them with ept-fed doctor data")


def _check_room(_kit: Path, settings: SiteSettings) -> Iterator[Finding]:
    state = settings.worker.state
    folder = next(path for path in (state, *state.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    enough = free >= LEAST_DISK_BYTES
    fix = "" if enough else "free at least 1 GB on the disk of worker.state"
    yield Finding("disk", "ok" if enough else "failed", f"{free / 1e9:.1f} GB free", fix)
    if settings.model.device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        wanted = settings.model.device == "cuda"
        found = "torch sees no CUDA device" + ("" if wanted else "; training runs on the CPU")
        yield Finding("GPU", "failed" if wanted else "ok", found, "set model.device to cpu or auto" if wanted else "")
        return
    free, total = torch.cuda.mem_get_info()
    enough = free >= LEAST_GPU_BYTES
    fix = "" if enough else "end other processes on the GPU, or set model.device to cpu"
    yield Finding("GPU", "ok" if enough else "failed", f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free", fix)


def _refused(name: str, refusal: InputRefusedError) -> Iterator[Finding]:
    for problem in refusal.problems:
        yield Finding(name, "failed", f"{problem.field} = {problem.value}", problem.fix)


_CHECKS: Sequence[Callable[[Path, SiteSettings], Iterator[Finding]]] = (
    _check_kit_files,
    _check_policy,
    _check_server,
    _check_registration,
    _check_worker,
    _check_room,
    _check_backbone_and_data,
)
