"""`ept-fed provision` and `ept-fed doctor kit` on the command line; one test starts the true process."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.provisioning.provision import provision
from tests.command_line import call, start

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "configs" / "federation.yaml"


@pytest.mark.integration
def test_a_process_of_its_own_makes_the_kits(tmp_path: Path) -> None:
    done = start("provision", EXAMPLE, "--out", "kits", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("north", "kits/sites/south.zip", "waits for its request", "files written", "kits/authority stays"):
        assert word in done.stdout


def test_kits_may_be_named_or_left_out(tmp_path: Path) -> None:
    assert "files written" in call("provision", "kits", EXAMPLE, "--out", tmp_path).stdout
    assert "Nothing was changed." in call("provision", EXAMPLE, "--out", tmp_path).stdout


def test_a_federations_life_on_the_command_line(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    at = ("--kits", kits, "--json")
    made = json.loads(call("provision", EXAMPLE, "--out", kits, "--json").stdout)
    assert [site["state"] for site in made["sites"]] == ["complete", "complete", "waits for its request"]
    asked = json.loads(call("provision", "request", tmp_path / "west", "--site", "west", "--json").stdout)
    approved = call("provision", "approve", asked["request"], "--fingerprint", asked["fingerprint"], *at)
    assert json.loads(approved.stdout)["sites"][2]["state"] == "without keys"
    renewed = json.loads(call("provision", "renew", "north", *at).stdout)
    assert "sites/north/tls/site.crt" in renewed["changed"]
    assert json.loads(call("provision", "renew", "--server", *at).stdout)["changed"]
    revoked = json.loads(call("provision", "revoke", "south", *at).stdout)
    assert revoked["sites"][1]["state"] == "revoked"
    assert json.loads(call("provision", EXAMPLE, "--out", kits, "--json").stdout)["changed"] == []
    text = call("provision", EXAMPLE, "--out", kits).stdout
    assert "revoked: excluded" in text
    assert "without private keys" in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("provision", "nowhere.yaml"), "cannot be read"),
        (("provision", "renew"), "name one site, or give --server"),
        (("provision", "renew", "north", "--server"), "name one site, or give --server"),
        (("provision", "renew", "north", "--kits", "nowhere"), "holds no kits"),
        (("provision", "revoke", "north", "--kits", "nowhere"), "holds no kits"),
        (("provision", "approve", "nowhere.json", "--kits", "nowhere"), "holds no kits"),
        (("provision", "request", "here", "--site", "A B"), "--site"),
        (("doctor", "kit", "nowhere"), "is not a kit"),
    ],
)
def test_refusals_exit_with_2_and_are_sentences(
    arguments: tuple[str, ...], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.exit_code == 2
    assert word in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("days_ago", "code", "status", "word"),
    [(0, 0, "sound", "sound"), (340, 0, "notice", "* notice: "), (370, 1, "faults", "* fault: ")],
)
def test_the_doctor_tells_the_end_of_a_certificate(
    days_ago: int, code: int, status: str, word: str, tmp_path: Path
) -> None:
    provision(EXAMPLE, tmp_path, now=datetime.now(UTC) - timedelta(days=days_ago))
    kit = tmp_path / "sites" / "north"
    told = call("doctor", "kit", kit)
    assert told.exit_code == code
    assert word in told.stdout
    document = json.loads(call("doctor", "kit", kit, "--json").stdout)
    assert (document["schema"], document["status"], document["name"]) == (1, status, "north")
    if status != "sound":
        assert "ept-fed provision renew north" in told.stdout
