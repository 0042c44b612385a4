"""Tests of `ept-fed audit`: sentences for a sound ledger, line and kind of each finding otherwise, and exit codes.

A sound ledger is verified by the true process.
"""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric import ec

from client.ledger.entry import FIRST
from client.ledger.ledger import Ledger, Record, tip_path
from ept_fed.pki.keys import serialize_openssh_public
from server.provisioning.authority import Authority
from tests.command_line import call, start

KEY = ec.generate_private_key(ec.SECP384R1())
SINKS = (("sinks", (12, 197)),)
HEAD = (*SINKS, ("head.weight", (2, 384)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ledger, the site's certificate, and certificates of two authorities."""
    folder = tmp_path_factory.mktemp("kit")
    ledger = Ledger(folder / "ledger.jsonl", KEY, site="north")
    ledger.append(Record("in", "introduce", "passed", run="run-a", bytes=900, sha256=FIRST, policy=FIRST))
    ledger.append(Record("out", "introduction", "passed", run="run-a", tensors=SINKS, bytes=9900, images=40))
    for number in (1, 2):
        ledger.append(Record("in", "train", "passed", run="run-a", round=number, tensors=SINKS, bytes=10_000))
        ledger.append(
            Record(
                "out",
                "train",
                "clipped" if number == 2 else "passed",
                run="run-a",
                round=number,
                tensors=SINKS,
                metrics=("loss", "steps"),
                images=40,
                bytes=10_100,
            )
        )
    reason = "incoming.rounds: 900: the policy allows 1 to 200"
    ledger.append(Record("in", "train", "refused", run="run-a", round=3, rule="incoming.rounds", reason=reason))
    ledger.close()
    now = datetime.now(UTC)
    own, other = (Authority(folder / name, name, now, 9) for name in ("consortium", "another"))
    node = serialize_openssh_public(ec.generate_private_key(ec.SECP384R1()).public_key())
    foreign = ec.generate_private_key(ec.SECP384R1()).public_key()
    issued = {
        "site.crt": own.issue_site("north", KEY.public_key(), node, now=now, days=9),
        "south.crt": own.issue_site("south", KEY.public_key(), node, now=now, days=9),
        "server.crt": own.issue_server("proxy", ["north"], KEY.public_key(), now=now, days=9),
        "foreign.crt": other.issue_site("north", foreign, node, now=now, days=9),
    }
    for name, line in issued.items():
        (folder / name).write_text(line.certificate)
    shutil.copy(folder / "consortium" / "ca.crt", folder / "ca.crt")
    return folder


@pytest.fixture
def kit(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "kit"))


def run(*words: object) -> Result:
    return call("audit", *words)


@pytest.mark.integration
def test_a_sound_ledger_is_summarised_in_sentences(kit: Path) -> None:
    done = start("audit", "verify", "ledger.jsonl", "--certificate", "site.crt", "--ca", "ca.crt", cwd=kit)
    assert done.returncode == 0, done.stdout + done.stderr
    for sentence in (
        "the site north sent 3 messages of 30,100 bytes in total, and received 3 messages of 20,900 bytes.",
        "2 answers to training, 10,100 bytes each: sinks 12×197 and the numbers loss, steps.",
        "No head, no gradient, no image, no file name was sent.",
        "1 message from the server was refused because of these rules: incoming.rounds (1).",
        "The site scaled 1 update down to the policy's bound before sending.",
        "its 8 entries form an unbroken chain, and the end is signed with the key of the certificate of north.",
    ):
        assert sentence in done.stdout


def test_without_a_certificate_the_owner_of_the_key_is_reported_as_unchecked(kit: Path) -> None:
    done = run("verify", kit / "ledger.jsonl")
    assert done.exit_code == 0
    assert "the owner of this key was not checked" in done.output


def test_a_sent_head_is_reported(kit: Path) -> None:
    ledger = Ledger(kit / "ledger.jsonl", KEY, site="north")
    ledger.append(Record("out", "train", "passed", run="run-a", round=3, tensors=HEAD, bytes=20_000))
    ledger.close()
    done = run("verify", kit / "ledger.jsonl", "--every-signature")
    assert "The site sent the classification head. No gradient, no image" in done.output
    assert (
        json.loads(run("verify", kit / "ledger.jsonl", "--every-signature", "--json").output)["signatures_checked"] == 9
    )


def test_an_altered_ledger_is_reported_by_line_and_kind(kit: Path) -> None:
    path = kit / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"bytes":10100', b'"bytes":90100', 1))
    done = run("verify", path, "--certificate", kit / "site.crt")
    assert done.exit_code == 1
    assert "THE LEDGER IS NOT INTACT (1 finding):\nline 5: altered:" in done.output
    assert "sent 3 messages" not in done.output
    report = json.loads(run("verify", path, "--json").output)
    assert (report["status"], report["findings"][0]["line"], report["findings"][0]["kind"]) == ("altered", 5, "altered")
    assert report["end"] is None


def test_a_recorded_end_must_still_be_in_the_ledger(kit: Path) -> None:
    path = kit / "ledger.jsonl"
    before = path.read_bytes(), tip_path(path).read_bytes()
    ledger = Ledger(path, KEY, site="north")
    ledger.append(Record("out", "train", "passed", run="run-a", round=3, tensors=HEAD, bytes=20_000))
    ledger.close()
    end = json.loads(run("verify", path, "--json").output)["end"]
    assert run("verify", path, "--seen", end).exit_code == 0
    path.write_bytes(before[0])
    tip_path(path).write_bytes(before[1])
    assert run("verify", path).exit_code == 0
    done = run("verify", path, "--seen", end)
    assert done.exit_code == 1
    assert "line 9: cut" in done.output


@pytest.mark.parametrize("certificate", ["foreign.crt", "south.crt"])
def test_a_certificate_of_another_key_or_site_is_a_finding(kit: Path, certificate: str) -> None:
    done = run("verify", kit / "ledger.jsonl", "--certificate", kit / certificate)
    assert done.exit_code == 1
    assert "line 1: foreign key" in done.output


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["none.jsonl"], "cannot be read"),
        (["ledger.jsonl", "--certificate", "ledger.jsonl"], "is not a certificate"),
        (["ledger.jsonl", "--ca", "ca.crt"], "requires --certificate too"),
        (["ledger.jsonl", "--certificate", "foreign.crt", "--ca", "ca.crt"], "was not issued by"),
        (["ledger.jsonl", "--certificate", "server.crt", "--ca", "ca.crt"], "was not issued by"),
        (["ledger.jsonl", "--certificate", "two.crt"], "must hold exactly one"),
        (["ledger.jsonl", "--seen", "9"], "must be SEQUENCE:HASH"),
    ],
)
def test_input_that_cannot_be_checked_is_refused(
    kit: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], text: str
) -> None:
    monkeypatch.chdir(kit)
    Path("two.crt").write_bytes(2 * Path("site.crt").read_bytes())
    done = run("verify", *words)
    assert done.exit_code == 2
    assert text in done.output


def test_entries_are_listed_by_the_given_filters(kit: Path) -> None:
    path = kit / "ledger.jsonl"
    done = run("show", path, "--decision", "refused")
    assert done.exit_code == 0
    assert done.output.count("run-a") == 1
    assert "the policy allows 1 to 200" in done.output
    shown = json.loads(run("show", path, "--direction", "out", "--last", "2", "--json").output)["entries"]
    assert [(entry["kind"], entry["round"]) for entry in shown] == [("train", 1), ("train", 2)]
    assert run("show", kit / "none").exit_code == 2
