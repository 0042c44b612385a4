"""Tests of the pre-flight check: it finds faults of kit, server and clock, and each failure names a remedy."""

import json
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from client.deployment.preflight import _CHECKS, Finding, _check_clock, check_kit
from ept_fed.cli.main import app
from ept_fed.pki.kit_layout import read_identity
from ept_fed.validation.load_site import load_site_settings
from server.provisioning.provision import provision

pytestmark = pytest.mark.integration

NOW = datetime.now(UTC)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_kits(folder: Path, port: int, *, now: datetime = NOW, days: int = 365) -> Path:
    folder.mkdir()
    federation = {
        "name": "f",
        "server": {"host": "127.0.0.1", "port": port},
        "sites": [{"name": "site-1"}, {"name": "south"}],
        "certificate_days": days,
    }
    (folder / "federation.yaml").write_text(yaml.safe_dump(federation))
    provision(folder / "federation.yaml", folder / "kits", now=now)
    return folder / "kits"


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_kits(tmp_path_factory.mktemp("consortium") / "federation", free_port())


@pytest.fixture
def server(kits: Path) -> Iterator[dict[str, Any]]:
    """A proxy that answers GET /health with a status and a clock that the test can change."""
    said: dict[str, Any] = {"status": 200, "ahead": 0.0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(said["status"] if self.path == "/health" else 403)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(datetime.now(UTC) + timedelta(seconds=said["ahead"]), usegmt=True)

        def log_message(self, *_: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kits / "server/tls/proxy.crt", kits / "server/tls/proxy.key")
    listener = HTTPServer(("127.0.0.1", read_identity(kits / "sites/site-1").server.port), Handler)
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
    yield said
    listener.shutdown()
    listener.server_close()


@pytest.fixture
def fill_in(make_kit: Callable[..., Path]) -> Callable[[Path], Path]:
    """Return a function that copies a site's kit and fills in its site.yaml."""

    def copy(kits: Path) -> Path:
        folder = make_kit()
        filled = (folder / "site.yaml").read_bytes()
        shutil.copytree(kits / "sites/site-1", folder, dirs_exist_ok=True)
        (folder / "site.yaml").write_bytes(filled)
        return folder

    return copy


@pytest.fixture
def kit(kits: Path, fill_in: Callable[[Path], Path]) -> Path:
    return fill_in(kits)


def states(kit: Path) -> dict[str, str]:
    found = check_kit(kit)
    assert all(finding.fix for finding in found if finding.state == "failed")
    return {finding.name: finding.state for finding in found}


@pytest.mark.usefixtures("server")
def test_in_a_sound_kit_only_the_processes_are_missing(kit: Path) -> None:
    assert states(kit) == {
        "kit": "ok",
        "policy": "ok",
        "server": "ok",
        "clock": "ok",
        "registration": "unknown",
        "SuperNode": "failed",
        "worker": "failed",
        "disk": "ok",
        "backbone": "unknown",
        "data": "ok",
    }


@pytest.mark.parametrize(
    ("begins", "days", "state", "says"),
    [(-400, 365, "failed", "ended on"), (5, 365, "failed", "not valid before"), (-350, 365, "notice", "ends on")],
)
def test_an_out_of_date_certificate_fails_and_one_that_ends_soon_gives_a_notice(
    tmp_path: Path, fill_in: Callable[[Path], Path], begins: int, days: int, state: str, says: str
) -> None:
    kits = make_kits(tmp_path / "old", 8443, now=NOW + timedelta(days=begins), days=days)
    (finding,) = [
        finding
        for finding in run_check(fill_in(kits), "_check_kit_files")
        if "site.crt" in finding.found and finding.state == state
    ]
    assert says in finding.fix


def run_check(kit: Path, check: str) -> list[Finding]:
    (run,) = (one for one in _CHECKS if one.__name__ == check)
    return list(run(kit, load_site_settings(kit / "site.yaml")))


def found_by(kit: Path, check: str) -> dict[str, str]:
    """Return the failures that one check finds, each with its remedy."""
    return {f.name: f"{f.found} {f.fix}" for f in run_check(kit, check) if f.state == "failed"}


def test_foreign_certificates_other_names_and_other_keys_are_found(kit: Path, kits: Path, tmp_path: Path) -> None:
    south = kits / "sites/south"
    for name in ("tls/site.crt", "keys/site.key"):
        shutil.copy(south / name, kit / name)
    assert "is not 'site-1'" in found_by(kit, "_check_kit_files")["kit"]
    shutil.copy(kits / "sites/site-1/tls/site.crt", kit / "tls/site.crt")
    assert "not the key of tls/site.crt" in found_by(kit, "_check_kit_files")["kit"]
    shutil.copy(make_kits(tmp_path / "others", 8443) / "sites/site-1/tls/ca.crt", kit / "tls/ca.crt")
    assert any("tls/ca.crt" in f.found or "tls/site.crt" in f.found for f in run_check(kit, "_check_kit_files"))
    (kit / "site.yaml").write_text((kit / "site.yaml").read_text().replace("site: site-1", "site: south", 1))
    assert any("but site.yaml to south" in f.found for f in run_check(kit, "_check_kit_files"))


def test_a_foreign_or_missing_server_is_found(kit: Path, server: dict[str, Any], tmp_path: Path) -> None:
    server["status"] = 502
    assert "502" in found_by(kit, "_check_server")["server"]
    others = make_kits(tmp_path / "others", 1)
    shutil.copy(others / "sites/site-1/tls/ca.crt", kit / "tls/ca.crt")
    assert "server" in found_by(kit, "_check_server")
    shutil.copy(others / "sites/site-1/federation.json", kit / "federation.json")
    assert "refused" in found_by(kit, "_check_server")["server"].lower()


def test_a_wrong_clock_is_found_over_the_wire(kit: Path, server: dict[str, Any]) -> None:
    server["ahead"] = 400.0
    assert "behind" in found_by(kit, "_check_server")["clock"]
    server["ahead"] = -10.0
    assert "ahead" in found_by(kit, "_check_server")["clock"]


@pytest.mark.parametrize(("ahead", "state"), [(-300, "ok"), (-303, "failed"), (0, "ok"), (4, "ok"), (7, "failed")])
def test_the_clock_may_differ_as_far_as_the_server_accepts(ahead: float, state: str) -> None:
    theirs = NOW.replace(microsecond=0)
    ours = theirs + timedelta(seconds=ahead)
    assert _check_clock(format_datetime(theirs, usegmt=True), ours, ours).state == state
    for date in (None, "yesterday", "Tue, 24 Nov 2026 12:00:00", "Tue, 24 Nov 2026 12:00:00 -0000"):
        assert _check_clock(date, ours, ours).state == "unknown"


def test_keys_that_others_may_read_are_found(kit: Path) -> None:
    (kit / "keys" / "node").chmod(0o644)
    assert "keys/node" in found_by(kit, "_check_kit_files")["kit"]


@pytest.mark.parametrize(
    ("line", "state"),
    [("SuperNode ID: 7", "ok"), ("[code: 2004] Failed to activate SuperNode.", "failed"), ("", "unknown")],
)
def test_the_servers_answer_to_the_nodes_key_is_read_from_the_log(kit: Path, line: str, state: str) -> None:
    log = kit / "logs" / "node" / "supernode.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"INFO : start\n{line}\n")
    assert states(kit)["registration"] == state


def test_an_invalid_policy_fails(kit: Path) -> None:
    (kit / "policy.yaml").write_text("schema: 1\noutgoing: {heads: true}")
    assert "policy" in found_by(kit, "_check_policy")


def test_the_exit_code_depends_on_the_findings(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(app, ["site", "check", str(kit), "--json"])
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert document["status"] == "failed"
    assert {"name", "state", "found", "fix"} == set(document["checks"][0])
    monkeypatch.setattr("client.deployment.preflight._CHECKS", (lambda *_: iter([Finding("a", "ok", "b")]),))
    assert CliRunner().invoke(app, ["site", "check", str(kit)]).exit_code == 0
    assert CliRunner().invoke(app, ["site", "check", str(kit / "nothing")]).exit_code == 2
    assert CliRunner().invoke(app, ["site", "status", str(kit)]).exit_code == 1
    assert CliRunner().invoke(app, ["site", "stop", str(kit)]).exit_code == 0
    assert CliRunner().invoke(app, ["site", "start", str(kit), "--worker-only", "--node-only"]).exit_code == 2
