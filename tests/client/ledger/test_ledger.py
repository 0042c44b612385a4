"""Tests of the ledger: an entry is on the disk before its message passes, one writer, recorded interruptions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.ledger import ledger as ledger_module
from client.ledger.entry import FIRST
from client.ledger.ledger import Ledger, LedgerBrokenError, LedgerBusyError, Record, tip_path
from client.ledger.verify import examine
from client.report.traffic import count_passages, read_ledger_passages

KEY = ec.generate_private_key(ec.SECP384R1())
MESSAGE = Record("out", "train", "passed", run="run", round=1, bytes=100, sha256=FIRST)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.jsonl"


def write(path: Path, count: int = 3) -> None:
    ledger = Ledger(path, KEY, site="north")
    for _ in range(count):
        ledger.append(MESSAGE)
    ledger.close()


def sound(path: Path) -> bool:
    return examine(path.read_bytes(), tip_path(path).read_bytes(), KEY.public_key(), every_signature=True).sound


def test_a_report_counts_the_messages_that_a_sound_ledger_records_for_its_run(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert read_ledger_passages(path, KEY.public_key(), "a") == ()
    ledger = Ledger(path, KEY, site="north")
    for kind, run, direction, decision in (
        ("introduce", "a", "in", "passed"), ("train", "b", "out", "passed"), ("train", "a", "in", "passed"),
        ("train", "a", "out", "refused"), ("train", "a", "out", "clipped"),
    ):  # fmt: skip
        ledger.append(Record(direction, kind, decision, run=run, round=1, bytes=7, sha256=FIRST))  # type: ignore[arg-type]
    ledger.close()
    passages = read_ledger_passages(path, KEY.public_key(), "a")
    assert [(p.direction, p.kind) for p in passages] == [("in", "introduction"), ("in", "train"), ("out", "train")]
    assert count_passages(passages, "ledger")["bytes_from_site"] == 7
    assert read_ledger_passages(path, ec.generate_private_key(ec.SECP384R1()).public_key(), "a") == ()
    path.write_bytes(path.read_bytes().replace(b'"bytes":7', b'"bytes":6', 1))
    assert read_ledger_passages(path, KEY.public_key(), "a") == ()


def test_a_ledger_continues_where_it_ended(path: Path) -> None:
    write(path, 2)
    write(path, 3)
    ledger = Ledger(path, KEY, site="north")
    assert [entry.sequence for entry in ledger.history] == [1, 2, 3, 4, 5, 6]
    assert ledger.history[-1].totals.sent.bytes == 500
    ledger.close()
    assert sound(path)


def test_only_the_worker_may_read_the_ledger(path: Path) -> None:
    write(path)
    assert {file.stat().st_mode & 0o777 for file in (path, tip_path(path))} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_there_is_one_writer(path: Path) -> None:
    first = Ledger(path, KEY, site="north")
    with pytest.raises(LedgerBusyError, match="another process"):
        Ledger(path, KEY, site="north")
    first.append(MESSAGE)
    first.close()
    write(path)
    assert sound(path)


def test_a_closed_ledger_accepts_no_entry(path: Path) -> None:
    ledger = Ledger(path, KEY, site="north")
    ledger.close()
    assert ledger.closed
    with pytest.raises(OSError, match="closed"):
        ledger.append(MESSAGE)


@pytest.mark.parametrize("spoil", ["flip", "cut", "key", "tip", "empty"])
def test_a_ledger_that_is_not_sound_is_not_written_to(path: Path, spoil: str) -> None:
    write(path)
    content, key = path.read_bytes(), KEY
    if spoil == "flip":
        path.write_bytes(content.replace(b'"bytes":100', b'"bytes":900', 1))
    elif spoil == "cut":
        path.write_bytes(b"".join(content.splitlines(keepends=True)[:-1]))
    elif spoil == "tip":
        tip_path(path).unlink()
    elif spoil == "empty":
        path.write_bytes(b"")
    else:
        key = ec.generate_private_key(ec.SECP384R1())
    before = path.read_bytes()
    with pytest.raises(LedgerBrokenError, match="line "):
        Ledger(path, key, site="north")
    assert path.read_bytes() == before


@pytest.mark.parametrize("torn", [1, 30, 500])
def test_a_partially_written_line_is_removed_and_recorded(path: Path, torn: int) -> None:
    write(path)
    content, tip = path.read_bytes(), tip_path(path).read_bytes()
    write(path, 1)
    line = path.read_bytes()[len(content) :]
    path.write_bytes(content + line[:torn])
    tip_path(path).write_bytes(tip)
    ledger = Ledger(path, KEY, site="north")
    recovered = ledger.append(MESSAGE)
    ledger.close()
    assert recovered.sequence == 6
    assert f'"torn_bytes":"{torn}"'.encode() in path.read_bytes()
    assert sound(path)


def test_an_entry_whose_tip_was_never_written_is_kept_and_recorded(path: Path) -> None:
    write(path)
    tip = tip_path(path).read_bytes()
    write(path, 1)
    tip_path(path).write_bytes(tip)
    write(path, 0)
    assert b'"unconfirmed_entries":"1"' in path.read_bytes()
    assert sound(path)


def test_a_full_disk_leaves_no_partial_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(path, KEY, site="north")
    whole_write = os.write
    monkeypatch.setattr(ledger_module.os, "write", lambda handle, content: whole_write(handle, content[:50]))
    with pytest.raises(OSError, match="part of an entry"):
        ledger.append(MESSAGE)
    monkeypatch.undo()
    assert ledger.append(MESSAGE).sequence == 2
    ledger.close()
    assert sound(path)


@pytest.mark.integration
def test_a_writer_killed_at_any_moment_leaves_a_ledger_that_continues(path: Path, tmp_path: Path) -> None:
    key = tmp_path / "site.key"
    key.write_bytes(
        KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from cryptography.hazmat.primitives.serialization import load_pem_private_key\n"
        "from client.ledger.ledger import Ledger, Record\n"
        f"key = load_pem_private_key(Path({str(key)!r}).read_bytes(), None)\n"
        f"ledger = Ledger(Path({str(path)!r}), key, site='north')\n"
        "print('open', flush=True)\n"
        "while True: print(ledger.append(Record('out', 'train', 'passed', bytes=100)).sequence, flush=True)\n"
    )
    confirmed = 0
    for lines in (1, 4, 9):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        rest = process.communicate()[0].splitlines()
        confirmed = max([confirmed, *(int(line) for line in (*told, *rest) if line.strip().isdigit())])
        write(path, 0)
        assert sound(path)
    assert len(path.read_bytes().splitlines()) >= confirmed > 0
