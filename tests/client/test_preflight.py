"""The pre-flight: what is wrong with a kit, its server and its clock is found, and each line says what to do."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from client.preflight import _CHECKS, Finding, _judge_clock, check_kit
from client.worker_process import open_door
from ept_fed.cli.main import app
from tests.client.open_door import open_to_all

Key = ec.EllipticCurvePrivateKey
NOW = datetime.now(UTC)


def certify(name: str, key: Key, issuer: tuple[x509.Name, Key] | None, days: tuple[int, int]) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer_name, issuer_key = issuer or (subject, key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=days[0]))
        .not_valid_after(NOW + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA384())


class Authority:
    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.certificate = certify("ca", self.key, None, (-1, 400))

    def issue(self, folder: Path, name: str, certificate: str, key: str, days: tuple[int, int] = (-1, 400)) -> None:
        made = ec.generate_private_key(ec.SECP384R1())
        issued = certify(name, made, (self.certificate.subject, self.key), days)
        for path in (folder / certificate, folder / key):
            path.parent.mkdir(exist_ok=True)
        (folder / certificate).write_bytes(issued.public_bytes(serialization.Encoding.PEM))
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / key).write_bytes(made.private_bytes(*form))
        (folder / key).chmod(0o600)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def server(authority: Authority, tmp_path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A proxy that answers GET /health; what it answers can be changed."""
    said: dict[str, Any] = {"status": 200, "ahead": 0.0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(said["status"] if self.path == "/health" else 403)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(datetime.now(UTC) + timedelta(seconds=said["ahead"]), usegmt=True)

        def log_message(self, *_: Any) -> None:
            pass

    folder = tmp_path / "server"
    folder.mkdir()
    authority.issue(folder, "proxy", "proxy.crt", "proxy.key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "proxy.crt", folder / "proxy.key")
    listener = HTTPServer(("127.0.0.1", 0), Handler)
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
    yield listener.server_port, said
    listener.shutdown()
    listener.server_close()


@pytest.fixture
def kit(
    make_kit: Callable[..., Path],
    authority: Authority,
    server: tuple[int, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    folder = make_kit()
    monkeypatch.setattr("client.preflight.open_door", open_to_all)
    authority.issue(folder, "site-1", "tls/site.crt", "keys/site.key")
    authority.issue(folder, "node", "keys/unused", "keys/node")
    (folder / "tls" / "ca.crt").write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    document = {"schema": 1, "federation": "f", "site": "site-1", "server": {"host": "127.0.0.1", "port": server[0]}}
    (folder / "federation.json").write_text(json.dumps(document))
    return folder


def states(kit: Path) -> dict[str, str]:
    found = check_kit(kit)
    assert all(finding.fix for finding in found if finding.state == "failed")
    return {finding.name: finding.state for finding in found}


def test_a_sound_kit_lacks_its_processes_only(kit: Path) -> None:
    assert states(kit) == {
        "kit": "ok",
        "policy": "ok",
        "authority": "ok",
        "certificate": "ok",
        "site key": "ok",
        "server": "ok",
        "clock": "ok",
        "registration": "unknown",
        "SuperNode": "failed",
        "worker": "failed",
        "disk": "ok",
        "backbone": "unknown",
        "data": "ok",
    }


@pytest.mark.parametrize(("days", "says"), [((-400, -1), "ended on"), ((1, 400), "valid from"), ((-1, 20), "ends on")])
def test_a_certificate_out_of_date_or_nearly_is_found(
    kit: Path, authority: Authority, days: tuple[int, int], says: str
) -> None:
    authority.issue(kit, "site-1", "tls/site.crt", "keys/site.key", days)
    assert says in found_by(kit, "_check_certificates")["certificate"]


def found_by(kit: Path, check: str) -> dict[str, str]:
    """What one check says fails."""
    from ept_fed.site_settings import load_site_settings

    (run,) = (one for one in _CHECKS if one.__name__ == check)
    found = run(kit, load_site_settings(kit / "site.yaml"))
    return {finding.name: finding.found for finding in found if finding.state == "failed"}


def test_foreign_certificates_other_names_and_other_keys_are_found(kit: Path, authority: Authority) -> None:
    authority.issue(kit, "south", "tls/site.crt", "keys/site.key")
    assert "is for south" in found_by(kit, "_check_certificates")["certificate"]
    authority.issue(kit, "site-1", "tls/site.crt", "keys/other.key")
    assert "not the certificate's" in found_by(kit, "_check_certificates")["site key"]
    Authority().issue(kit, "site-1", "tls/site.crt", "keys/site.key")
    assert "not signed" in found_by(kit, "_check_certificates")["certificate"]
    (kit / "tls" / "site.crt").write_text("no certificate")
    assert "certificate" in found_by(kit, "_check_certificates")


def test_a_server_of_somebody_else_or_nobody_is_found(kit: Path, server: tuple[int, dict[str, Any]]) -> None:
    server[1]["status"] = 502
    assert "502" in found_by(kit, "_check_server")["server"]
    (kit / "tls" / "ca.crt").write_bytes(Authority().certificate.public_bytes(serialization.Encoding.PEM))
    assert "server" in found_by(kit, "_check_server")
    (kit / "federation.json").write_text('{"schema": 1, "server": {"host": "127.0.0.1", "port": 1}}')
    assert "refused" in found_by(kit, "_check_server")["server"].lower()


def test_a_wrong_clock_is_found_over_the_wire(kit: Path, server: tuple[int, dict[str, Any]]) -> None:
    server[1]["ahead"] = 400.0
    assert "behind" in found_by(kit, "_check_server")["clock"]
    server[1]["ahead"] = -10.0
    assert "ahead" in found_by(kit, "_check_server")["clock"]


@pytest.mark.parametrize(("ahead", "state"), [(-300, "ok"), (-303, "failed"), (0, "ok"), (4, "ok"), (7, "failed")])
def test_the_clock_may_differ_as_far_as_the_server_accepts(ahead: float, state: str) -> None:
    theirs = NOW.replace(microsecond=0)
    ours = theirs + timedelta(seconds=ahead)
    assert _judge_clock(format_datetime(theirs, usegmt=True), ours, ours).state == state
    assert _judge_clock(None, ours, ours).state == "unknown"


def test_keys_that_others_may_read_are_found(kit: Path) -> None:
    (kit / "keys" / "node").chmod(0o644)
    assert "keys/node" in found_by(kit, "_check_kit_files")["kit"]


@pytest.mark.parametrize(
    ("line", "state"),
    [("SuperNode ID: 7", "ok"), ("[code: 2004] Failed to activate SuperNode.", "failed"), ("", "unknown")],
)
def test_the_servers_word_on_the_nodes_key_is_in_its_log(kit: Path, line: str, state: str) -> None:
    log = kit / "logs" / "node" / "supernode.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"INFO : start\n{line}\n")
    assert states(kit)["registration"] == state


def test_without_a_gate_the_policy_fails(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.preflight.open_door", open_door)
    monkeypatch.setattr("client.worker_process.find_spec", lambda _: None)
    assert "policy" in found_by(kit, "_check_policy")


def test_the_verb_exits_with_what_was_found(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(app, ["site", "check", str(kit), "--json"])
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert document["status"] == "failed"
    assert {"name", "state", "found", "fix"} == set(document["checks"][0])
    monkeypatch.setattr("client.preflight._CHECKS", (lambda *_: iter([Finding("a", "ok", "b")]),))
    assert CliRunner().invoke(app, ["site", "check", str(kit)]).exit_code == 0
    assert CliRunner().invoke(app, ["site", "check", str(kit / "nothing")]).exit_code == 2
    assert CliRunner().invoke(app, ["site", "status", str(kit)]).exit_code == 1
    assert CliRunner().invoke(app, ["site", "stop", str(kit)]).exit_code == 0
    assert CliRunner().invoke(app, ["site", "start", str(kit), "--worker-only", "--node-only"]).exit_code == 2
