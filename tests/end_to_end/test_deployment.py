"""Tests of one federation as hospitals would run it, on this machine's loopback; all tests of the module share it."""

import json
import shutil
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpcore
import pytest
from safetensors.numpy import load_file

from ept_fed.pki.keys import new_key, serialize_openssh_private
from ept_fed.progress import Silent
from ept_fed.validation.load_experiment import load_experiment
from server.deployment.service import find_superlink_port
from server.deployment.status import describe_server
from simulations.deployment.loopback_deployment import Rehearsal
from simulations.deployment.traffic import Counted, count_traffic, is_idle, kind_of, read_requests, sender_of
from simulations.engine.simulate import simulate

pytestmark = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin") is None,
    reason="nginx is not installed: apt install nginx-light",
)

NAME = "two"


@dataclass(frozen=True)
class Federated:
    """The rehearsal with its processes still running, after its run has ended."""

    rehearsal: Rehearsal
    experiment: Path
    code: int
    said: str
    second: tuple[int, str]

    @property
    def folder(self) -> Path:
        return self.rehearsal.server.runs / NAME

    def rounds(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.folder / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def federated() -> Iterator[Federated]:
    with Rehearsal(2) as rehearsal:
        rehearsal.start_server()
        for name in rehearsal.names:
            rehearsal.start_site(name)
        experiment = rehearsal.write_experiment(NAME)
        kit = str(rehearsal.server.folder)
        code, said = rehearsal.ask("server", "run", str(experiment), "--kit", kit, "--detach")
        assert code == 0, said
        second = rehearsal.run(experiment, "--name", "other")
        rehearsal.wait_for(lambda: over(kit), "the run to end", every=0.5)
        yield Federated(rehearsal, experiment, code, said, second)
    assert rehearsal.descendants() == []
    assert not rehearsal.folder.exists()


def over(kit: str) -> bool:
    run = describe_server(Path(kit))["run"]
    return run is not None and run["phase"] in ("done", "failed", "stopped")


def test_the_run_is_done_and_no_site_was_refused(federated: Federated) -> None:
    run = describe_server(federated.rehearsal.server.folder)["run"]
    assert run is not None
    assert (run["phase"], run["ended"]) == ("done", "all rounds"), federated.rehearsal.logs()
    assert [line["refused"] for line in federated.rounds()] == [[], []]
    assert [line["aggregated"] for line in federated.rounds()] == [["site-1", "site-2"]] * 2


def test_a_second_run_is_refused_by_name_while_one_is_running(federated: Federated) -> None:
    code, said = federated.second
    assert code == 2
    assert NAME in said
    assert "is still running" in said
    assert not (federated.rehearsal.server.runs / "other").exists()


def test_prompts_equal_the_simulation_bit_for_bit(federated: Federated, tmp_path: Path) -> None:
    simulate(load_experiment(federated.experiment), tmp_path / "simulated", Silent())
    ours, theirs = (
        {path.name: tensors(path) for path in (folder / "prompts").iterdir()}
        for folder in (federated.folder, tmp_path / "simulated")
    )
    assert len({str(prompts) for prompts in ours.values()}) == 3
    assert ours == theirs


def tensors(path: Path) -> dict[str, bytes]:
    """Return a payload's bytes by tensor, without the run's name, which depends on where it ran."""
    return {name: tensor.tobytes() for name, tensor in load_file(path).items()}


def ask(rehearsal: Rehearsal, path: str, *, method: str = "POST", port: int | None = None, http2: bool = False) -> int:
    """Request a path exactly as written: a client that parses URLs would resolve its dots first."""
    context = ssl.create_default_context(cafile=str(rehearsal.server.folder / "tls" / "ca.crt"))
    url = httpcore.URL(scheme=b"https", host=b"localhost", port=port or rehearsal.port, target=path.encode())
    with httpcore.ConnectionPool(ssl_context=context, http1=not http2, http2=http2) as pool:
        answer = pool.request(method, url, headers={"Content-Length": "0"}, extensions={"timeout": {"read": 10.0}})
    assert answer.extensions["http_version"] == (b"HTTP/2" if http2 else b"HTTP/1.1")
    return answer.status


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "//v1/control/list-nodes",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_paths_without_a_signature_check_are_refused_from_outside(federated: Federated, path: str, http2: bool) -> None:
    assert ask(federated.rehearsal, path, http2=http2) == 403
    assert ask(federated.rehearsal, path, method="GET", http2=http2) == 403


def test_the_same_paths_are_open_without_the_proxy(federated: Federated) -> None:
    port = find_superlink_port(federated.rehearsal.server)
    assert ask(federated.rehearsal, "/docs", method="GET", port=port) == 200
    assert ask(federated.rehearsal, "/health", method="GET") == 200


def test_an_intruders_key_is_refused(federated: Federated) -> None:
    rehearsal = federated.rehearsal
    kit = rehearsal.copy_site("site-1", "intruder")
    (kit / "keys" / "node").write_bytes(serialize_openssh_private(new_key()))
    rehearsal.start("intruder", "site", "start", str(kit), "--node-only")
    log = kit / "logs" / "node" / "supernode.log"
    rehearsal.wait_for(lambda: log.exists() and "Failed to activate SuperNode" in log.read_text(), "the refusal")
    rehearsal.end("intruder")
    sites = describe_server(rehearsal.server.folder)["sites"]
    assert set(sites) == set(rehearsal.names)


def test_a_round_costs_at_most_its_payload_and_six_kilobytes_each_way(federated: Federated) -> None:
    """Headers count; periodic traffic (heartbeats and empty polls) does not belong to a round and is left out."""
    rehearsal = federated.rehearsal
    requests = read_requests(rehearsal.server.state / "logs" / "proxy" / "proxy.log")
    counted = count_traffic((r for r in requests if not is_idle(r)), rehearsal.server.public_keys())
    payload = 4 * payload_size(federated)
    exchanges = 4  # the introduction, two rounds, and the last evaluation
    for name in rehearsal.names:
        site = counted[name]
        assert site.requests > 9 * exchanges
        assert 2 * payload < site.received_bodies < site.received <= exchanges * (payload + 6000)
        assert 3 * payload < site.sent_bodies < site.sent <= exchanges * (payload + 6000)
    assert counted.keys() == set(rehearsal.names)
    assert all(isinstance(site, Counted) for site in counted.values())


def test_all_traffic_except_heartbeats_uses_http_2(federated: Federated) -> None:
    rehearsal = federated.rehearsal
    keys = set(rehearsal.server.public_keys().values())
    log = read_requests(rehearsal.server.state / "logs" / "proxy" / "proxy.log")
    spoken = {(kind_of(request), request["protocol"]) for request in log if sender_of(request) in keys}
    assert {protocol for kind, protocol in spoken if kind != "send-node-heartbeat"} == {"HTTP/2.0"}
    assert {kind for kind, _ in spoken} >= {"pull-messages", "pull-object", "push-messages", "push-object"}


def payload_size(federated: Federated) -> int:
    from server.deployment.run_state import read_agreement

    agreement = read_agreement(federated.folder)
    assert agreement is not None
    return agreement.plan.layout.size


def test_only_the_owner_may_read_the_state(federated: Federated) -> None:
    assert federated.rehearsal.server.state.stat().st_mode & 0o777 == 0o700


def test_status_and_log_report_the_run_and_a_finished_run_is_not_resumed(federated: Federated) -> None:
    rehearsal, kit = federated.rehearsal, str(federated.rehearsal.server.folder)
    code, said = rehearsal.ask("server", "status", kit, "--json")
    assert code == 0
    document = json.loads(said)
    assert document["run"]["sites"]["site-1"]["bytes_received"] > 0
    assert {site["status"] for site in document["sites"].values()} == {"online"}
    code, said = rehearsal.ask("server", "log", kit)
    assert (code, "round 2 of 2" in said) == (0, True)
    code, said = rehearsal.ask("server", "run", "--resume", "--kit", kit)
    assert (code, "is done" in said) == (2, True)
