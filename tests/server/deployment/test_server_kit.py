"""How the server reads and checks its kit before it starts any process."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ept_fed.errors import InputRefusedError
from server.deployment.flower_bundle import build_bundle
from server.deployment.proxy import PATHS, find_nginx, write_proxy_files
from server.deployment.server_kit import open_server_kit
from server.deployment.service import ServerAwayError, find_superlink_port, start_server, stop_server
from server.deployment.status import describe_run, describe_server
from server.deployment.submit import run_experiment
from server.deployment.superlink_control import Run
from server.provisioning.provision import provision, revoke
from tests.conftest import MICRO
from tests.needs import NGINX


def refusal(act) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(InputRefusedError) as refused:
        act()
    return str(refused.value)


@pytest.fixture
def server(kits: Path) -> Path:
    return kits / "server"


def test_a_kit_names_its_sites_and_their_keys(server: Path) -> None:
    kit = open_server_kit(server)
    assert set(kit.sites) == set(kit.public_keys()) == {"north", "south"}
    assert all(key.startswith(b"-----BEGIN PUBLIC KEY-----") for key in kit.public_keys().values())


def test_a_revoked_site_has_no_key_any_more(kits: Path, now: datetime) -> None:
    revoke("south", kits, now=now)
    kit = open_server_kit(kits / "server")
    assert set(kit.public_keys()) == {"north"}
    assert describe_server(kit.folder)["sites"]["south"]["status"] == "revoked"


def test_certificates_are_good_today_and_not_after_their_end(server: Path, now: datetime) -> None:
    kit = open_server_kit(server)
    assert kit.find_tls_problems(now) == []
    (proxy, superlink) = kit.find_tls_problems(now + timedelta(days=400))
    assert proxy.field == "tls/proxy.crt"
    assert "provision renew --server" in superlink.fix


def test_certificates_of_another_authority_are_refused(server: Path, federation_file: Path, tmp_path: Path) -> None:
    provision(federation_file, tmp_path / "others", now=datetime.now(UTC))
    shutil.copy(tmp_path / "others" / "server" / "tls" / "ca.crt", server / "tls" / "ca.crt")
    problems = open_server_kit(server).find_tls_problems(datetime.now(UTC))
    assert {problem.field for problem in problems} == {"tls/proxy.crt", "tls/superlink.crt"}


def test_a_sites_kit_is_no_servers(kits: Path) -> None:
    assert "name the folder of the server's kit" in refusal(lambda: open_server_kit(kits / "sites" / "north"))


def test_a_damaged_list_of_sites_is_refused(server: Path) -> None:
    document = json.loads((server / "sites.json").read_text())
    for damage in ({**document, "schema": 2}, {**document, "more": 1}, [], {**document, "federation": "another"}):
        (server / "sites.json").write_text(json.dumps(damage))
        assert "sites.json" in refusal(lambda: open_server_kit(server))


def test_without_nginx_the_sentence_says_what_to_install(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.deployment.proxy.shutil.which", lambda *_args, **_kwargs: None)
    said = refusal(lambda: start_server(server, "nginx", print))
    assert "apt install nginx" in said
    assert not (server / "state").exists()


def test_only_listed_paths_are_in_the_proxys_files(server: Path) -> None:
    kit = open_server_kit(server)
    kit.make_state()
    write_proxy_files(kit, 12345, nginx=None)
    text = (kit.state / "proxy" / "nginx.conf").read_text()
    assert text.count("proxy_pass") == len(PATHS)
    assert "location / { return 403; }" in text
    assert not any("control" in path or "runtime" in path or "register" in path for path in PATHS)
    caddy = (kit.state / "proxy" / "Caddyfile").read_text()
    assert all(path in caddy for path in PATHS)


@pytest.mark.integration
@NGINX.mark
def test_nginx_accepts_the_configuration(server: Path) -> None:
    nginx = find_nginx()
    kit = open_server_kit(server)
    kit.make_state()
    (kit.state / "logs" / "proxy").mkdir(parents=True)
    write_proxy_files(kit, 12345, nginx=nginx)
    (server / "tls" / "proxy.crt").write_text("no certificate")
    assert "nginx -t" in refusal(lambda: write_proxy_files(kit, 12345, nginx=nginx))


def test_a_path_that_would_break_the_configuration_is_refused(server: Path, tmp_path: Path) -> None:
    odd = tmp_path / "kit; of two"
    shutil.copytree(server, odd)
    kit = open_server_kit(odd)
    kit.make_state()
    assert "move it" in refusal(lambda: write_proxy_files(kit, 12345, nginx=None))


def test_without_a_server_nothing_is_submitted_and_nothing_is_stopped(server: Path, micro_file: Path) -> None:
    kit = open_server_kit(server)
    with pytest.raises(ServerAwayError, match="ept-fed server start"):
        find_superlink_port(kit)
    with pytest.raises(ServerAwayError):
        run_experiment(server, micro_file, [], name=None, resume=False, wait=True, watch=lambda *_: None)
    assert stop_server(kit) is None
    assert "no server runs" in describe_server(server)["problem"]


@pytest.mark.parametrize("name", ["../elsewhere", "elsewhere", ""])
def test_a_run_is_looked_for_among_the_kits_own_folders_only(server: Path, name: str) -> None:
    kit = open_server_kit(server)
    for folder in (kit.runs / "ours", kit.runs.parent / "elsewhere"):
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
    run = Run(7, name, "running", "", "", "", 0, 0)
    described = describe_run(kit, run)
    assert described is not None
    assert described["name"] == "ours"


def test_lines_that_are_no_rounds_do_not_stop_the_status(server: Path) -> None:
    kit = open_server_kit(server)
    (kit.runs / "ours").mkdir(parents=True)
    (kit.runs / "ours" / "config.yaml").touch()
    (kit.runs / "ours" / "rounds.jsonl").write_text('{"round": 1}\n')
    described = describe_run(kit, None)
    assert described is not None
    assert described["refused"] == []


def test_the_bundle_holds_two_names_and_is_always_the_same(tmp_path: Path) -> None:
    content = build_bundle()
    assert content == build_bundle()
    (tmp_path / "bundle.zip").write_bytes(content)
    shutil.unpack_archive(tmp_path / "bundle.zip", tmp_path / "bundle")
    files = {path.relative_to(tmp_path / "bundle").as_posix() for path in (tmp_path / "bundle").rglob("*.py")}
    assert files == {"ept_fed_run_server.py", "ept_fed_run_site.py"}
    assert len(content) < 3000


def test_an_experiment_is_refused_before_anything_is_submitted(
    server: Path, micro_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.deployment.submit.find_superlink_port", lambda _kit: 1)

    def submit(*overrides: str) -> None:
        run_experiment(server, micro_file, overrides, name=None, resume=False, wait=True, watch=lambda *_: None)

    said = refusal(lambda: submit("federation.quorum=5", "federation.max_examples={elsewhere: 3}"))
    assert "data.classes" in said
    assert "federation.quorum" in said
    assert "elsewhere" in said
    assert not (server / "state" / "runs" / str(MICRO["name"])).exists()
