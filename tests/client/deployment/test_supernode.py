"""Tests of SuperNode over HTTP/2: Flower's own behaviour is unchanged, and no payload delays a heartbeat."""

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.supercore.exit import ExitCode
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.deployment import supernode
from client.deployment.supernode import MultiplexedFleetClient
from ept_fed.pki.keys import new_key, serialize_pkcs8

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 20.0


class Fleet(ThreadingHTTPServer):
    """An HTTP/1.1 SuperLink that sends empty answers; its answer to a poll waits for `may_answer`."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.polled, self.may_answer = threading.Event(), threading.Event()
        self.at_once, self.max_at_once, self.lock = 0, 0, threading.Lock()
        self.connections, self.cuts = 0, 0
        self.certificate = folder / "server.crt"
        key, name = new_key(), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), 1)
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        self.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        (folder / "server.key").write_bytes(serialize_pkcs8(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, folder / "server.key")
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def get_request(self) -> tuple[socket.socket, object]:
        if not self.cuts:
            return super().get_request()
        self.cuts -= 1
        raw, _ = socket.socket.accept(self.socket)
        raw.close()
        raise OSError("cut off before TLS was agreed on")


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Fleet

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/pull-messages"):
            with self.server.lock:
                self.server.at_once += 1
                self.server.max_at_once = max(self.server.at_once, self.server.max_at_once)
            self.server.polled.set()
            self.server.may_answer.wait(LIMIT)
            with self.server.lock:
                self.server.at_once -= 1
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, *_words: object) -> None:
        """Write no log line."""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.may_answer.set()
        server.shutdown()


def connect(fleet: Fleet) -> MultiplexedFleetClient:
    address = f"localhost:{fleet.server_address[1]}"
    return MultiplexedFleetClient.from_server_address(address, False, fleet.certificate.read_bytes(), [])


def test_a_server_without_http_2_is_called_as_by_flowers_own_client(fleet: Fleet) -> None:
    fleet.may_answer.set()
    with connect(fleet) as client:
        assert not client.PullMessages(PullMessagesRequest()).messages_list
        assert not client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success


def test_a_heartbeat_does_not_wait_for_a_pending_message(fleet: Fleet) -> None:
    with connect(fleet) as client, ThreadPoolExecutor() as threads:
        message = threads.submit(client.PullMessages, PullMessagesRequest())
        assert fleet.polled.wait(LIMIT)
        client.SendNodeHeartbeat(SendNodeHeartbeatRequest())
        assert not message.done()
        fleet.may_answer.set()
        message.result(LIMIT)


def test_messages_go_one_at_a_time(fleet: Fleet) -> None:
    with connect(fleet) as client, ThreadPoolExecutor(4) as threads:
        messages = [threads.submit(client.PullMessages, PullMessagesRequest()) for _ in range(4)]
        assert fleet.polled.wait(LIMIT)
        fleet.may_answer.set()
        for message in messages:
            message.result(LIMIT)
    assert fleet.max_at_once == 1


@pytest.mark.parametrize("after", ["requests", "seconds"])
def test_a_connection_is_replaced_before_a_proxy_closes_it(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    monkeypatch.setattr(supernode, *(("_MAX_REQUESTS", 2) if after == "requests" else ("_MAX_SECONDS", 0.0)))
    fleet.may_answer.set()
    with connect(fleet) as client:
        for _ in range(5):
            client.PullMessages(PullMessagesRequest())
    assert fleet.connections == (3 if after == "requests" else 5)


def test_a_call_cut_off_by_a_killed_proxy_is_tried_again(fleet: Fleet) -> None:
    fleet.cuts = 2
    fleet.may_answer.set()
    retry = make_simple_http_retry_invoker()
    retry.max_tries, retry.wait_function = 3, lambda _seconds: None
    with connect(fleet) as client:
        assert not retry.invoke(client.PullMessages, PullMessagesRequest()).messages_list
    assert (fleet.cuts, fleet.connections) == (0, 1)


def test_an_untrusted_certificate_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with Fleet(tmp_path / "other") as other:
        address = f"localhost:{fleet.server_address[1]}"
        client = MultiplexedFleetClient.from_server_address(address, False, other.certificate.read_bytes(), [])
    retry = make_simple_http_retry_invoker()
    for call in (client.PullMessages, client.SendNodeHeartbeat):
        request = PullMessagesRequest() if call == client.PullMessages else SendNodeHeartbeatRequest()
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            retry.invoke(call, request)
    client.close()


def test_flowers_supernode_is_started_with_this_client_in_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(fleet_http_connection, "FleetHttpClient", FleetHttpClient)
    monkeypatch.setattr(sys, "argv", ["supernode.py"])
    monkeypatch.setattr(supernode, "flower_supernode", lambda: seen.append(fleet_http_connection.FleetHttpClient))
    # SuperNode returns only after an error, and its threads would keep the process alive, so main() has to exit.
    monkeypatch.setattr(supernode, "flwr_exit", lambda code, _message: seen.append(code))
    supernode.main()
    assert seen == [MultiplexedFleetClient, ExitCode.SUPERNODE_CONNECTION_ERROR]


def test_it_takes_flowers_options_and_loads_no_torch() -> None:
    code = (
        "import sys\nfrom client.deployment.supernode import main\nsys.argv = ['x', '--help']\n"
        "try:\n    main()\nfinally:\n    print({'torch', 'timm', 'monai'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "--auth-supernode-private-key" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
