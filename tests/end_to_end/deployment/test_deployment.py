"""Tests of one federation as hospitals would run it, on this machine's loopback."""

import json
import ssl
from pathlib import Path

import httpcore
import pytest
from safetensors.numpy import load_file

from ept_fed.progress import Silent
from ept_fed.validation.load_experiment import load_experiment
from server.deployment.run_state import read_agreement
from server.deployment.service import find_superlink_port
from simulations.deployment.loopback_deployment import Rehearsal
from simulations.deployment.traffic import Counted, count_traffic, is_idle, kind_of, sender_of
from simulations.engine.simulate import simulate
from tests.end_to_end.deployment.conftest import Federated
from tests.needs import NGINX

pytestmark = [pytest.mark.integration, NGINX.mark]


def test_the_run_is_done_and_no_site_was_refused(plain: Federated) -> None:
    result = json.loads((plain.folder / "result.json").read_text())
    assert (result["status"], result["ended"]) == ("done", "all rounds"), plain.rehearsal.logs()
    assert [line["refused"] for line in plain.rounds()] == [[], []]
    assert [line["aggregated"] for line in plain.rounds()] == [list(plain.rehearsal.names)] * 2


def test_a_second_run_is_refused_by_name_while_one_is_running(plain: Federated) -> None:
    code, said = plain.second
    assert code == 2
    assert plain.name in said
    assert "is still running" in said
    assert not (plain.rehearsal.server.runs / "second").exists()


def test_prompts_equal_the_simulation_bit_for_bit(plain: Federated, tmp_path: Path) -> None:
    simulate(load_experiment(plain.experiment), tmp_path / "simulated", Silent())
    ours, theirs = (
        {path.name: tensors(path) for path in (folder / "prompts").iterdir()}
        for folder in (plain.folder, tmp_path / "simulated")
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
def test_paths_without_a_signature_check_are_refused_from_outside(plain: Federated, path: str, http2: bool) -> None:
    assert ask(plain.rehearsal, path, http2=http2) == 403
    assert ask(plain.rehearsal, path, method="GET", http2=http2) == 403


def test_the_same_paths_are_open_without_the_proxy(plain: Federated) -> None:
    port = find_superlink_port(plain.rehearsal.server)
    assert ask(plain.rehearsal, "/docs", method="GET", port=port) == 200
    assert ask(plain.rehearsal, "/health", method="GET") == 200


def test_a_round_costs_at_most_its_payload_and_six_kilobytes_each_way(plain: Federated) -> None:
    """Headers count; periodic traffic (heartbeats and empty polls) does not belong to a round and is left out."""
    rehearsal = plain.rehearsal
    counted = count_traffic((r for r in plain.requests if not is_idle(r)), rehearsal.server.public_keys())
    payload = 4 * payload_size(plain)
    exchanges = 4  # the introduction, two rounds, and the last evaluation
    for name in rehearsal.names:
        site = counted[name]
        assert site.requests > 9 * exchanges
        assert 2 * payload < site.received_bodies < site.received <= exchanges * (payload + 6000)
        assert 3 * payload < site.sent_bodies < site.sent <= exchanges * (payload + 6000)
    assert counted.keys() == set(rehearsal.names)
    assert all(isinstance(site, Counted) for site in counted.values())


def test_all_traffic_except_heartbeats_uses_http_2(plain: Federated) -> None:
    keys = set(plain.rehearsal.server.public_keys().values())
    spoken = {(kind_of(request), request["protocol"]) for request in plain.requests if sender_of(request) in keys}
    assert {protocol for kind, protocol in spoken if kind != "send-node-heartbeat"} == {"HTTP/2.0"}
    assert {kind for kind, _ in spoken} >= {"pull-messages", "pull-object", "push-messages", "push-object"}


def payload_size(plain: Federated) -> int:
    agreement = read_agreement(plain.folder)
    assert agreement is not None
    return agreement.plan.layout.size


def test_only_the_owner_may_read_the_state(plain: Federated) -> None:
    assert plain.rehearsal.server.state.stat().st_mode & 0o777 == 0o700


def test_status_and_log_report_the_run_and_a_finished_run_is_not_resumed(plain: Federated) -> None:
    rehearsal, kit = plain.rehearsal, str(plain.rehearsal.server.folder)
    code, said = rehearsal.ask("server", "status", kit, "--json")
    assert code == 0
    document = json.loads(said)
    # Status, log and resume take the newest run, which may be that of the other tests.
    assert (document["run"]["phase"], document["run"]["ended"]) == ("done", "all rounds")
    assert document["run"]["sites"]["site-1"]["bytes_received"] > 0
    assert {site["status"] for site in document["sites"].values()} == {"online"}
    code, said = rehearsal.ask("server", "log", kit, "--name", plain.name)
    assert (code, "round 2 of 2" in said) == (0, True)
    code, said = rehearsal.ask("server", "log", kit)
    assert (code, "round 1 of " in said) == (0, True)
    code, said = rehearsal.ask("server", "run", "--resume", "--kit", kit)
    assert (code, "is done" in said) == (2, True)
