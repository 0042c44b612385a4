"""Tests of partially written lines: a last one is saved and recorded, and a cut of a confirmed line is tampering."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from client.audit.report import verify_ledger
from client.ledger.crash_recovery import is_torn, split_lines
from client.ledger.entry import FIRST
from client.ledger.ledger import Ledger, LedgerBrokenError, Record, tip_path
from client.ledger.partial_writes import load_torn
from client.ledger.verify import Examination, examine
from tests.effort import examples

KEY = ec.generate_private_key(ec.SECP384R1())
MESSAGE = Record("out", "train", "passed", run="run", round=1, bytes=100, sha256=FIRST)
CHEAP = examples(15, suppress=(HealthCheck.function_scoped_fixture,))


@dataclass(frozen=True)
class Written:
    """Three entries, and their ledger's tips before and after the third was confirmed."""

    before: bytes
    last: bytes
    earlier_tip: bytes
    tip: bytes


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    path = tmp_path_factory.mktemp("written") / "ledger.jsonl"
    ledger = Ledger(path, KEY, site="north")
    ledger.append(MESSAGE)
    before, earlier_tip = path.read_bytes(), tip_path(path).read_bytes()
    ledger.append(MESSAGE)
    ledger.close()
    return Written(before, path.read_bytes()[len(before) :], earlier_tip, tip_path(path).read_bytes())


def place(folder: Path, content: bytes, tip: bytes) -> Path:
    path = folder / "ledger.jsonl"
    for file in folder.glob("ledger.*"):
        file.unlink()
    path.write_bytes(content)
    tip_path(path).write_bytes(tip)
    return path


def look(content: bytes, tip: bytes) -> Examination:
    return examine(content, tip, KEY.public_key(), every_signature=True)


@st.composite
def tears(draw: st.DrawFn, line: bytes) -> bytes:
    """Draw the possible remains of a line: its beginning, with zeros in it and zeros after it."""
    torn = bytearray(line[: draw(st.integers(0, len(line)))])
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(torn)))
        end = draw(st.integers(start, len(torn)))
        torn[start:end] = bytes(end - start)
    return bytes(torn) + bytes(draw(st.sampled_from([0, 1, 512, 4096])))


@CHEAP
@given(data=st.data())
def test_a_partial_last_line_is_kept_and_named_by_the_next_entry_and_the_site_continues(
    written: Written, tmp_path: Path, data: st.DataObject
) -> None:
    torn = data.draw(tears(written.last))
    if torn in (b"", written.last):
        return
    path = place(tmp_path, written.before + torn, written.earlier_tip)
    assert verify_ledger(path)["torn_bytes"] in (len(torn), len(torn) - len(written.last))
    ledger = Ledger(path, KEY, site="north")
    ledger.append(MESSAGE)
    ledger.close()
    after = look(path.read_bytes(), tip_path(path).read_bytes())
    assert after.sound
    (found,) = [found for entry in after.entries if (found := load_torn(entry.about)) is not None]
    kept = (tmp_path / found.file).read_bytes()
    assert torn.endswith(kept)
    assert (found.size, found.sha256) == (len(kept), hashlib.sha256(kept).hexdigest())
    assert any(found.file in said and "is kept next to" in said for said in verify_ledger(path)["sentences"])


@CHEAP
@given(data=st.data())
def test_the_same_damage_to_a_line_that_the_tip_confirms_is_located_tampering(
    written: Written, tmp_path: Path, data: st.DataObject
) -> None:
    torn = data.draw(tears(written.last))
    if torn[: len(written.last)] == written.last:
        return
    found = look(written.before + torn, written.tip)
    assert (3, "cut") in {(finding.line, finding.kind) for finding in found.findings}
    path = place(tmp_path, written.before + torn, written.tip)
    with pytest.raises(LedgerBrokenError, match="line 3: cut"):
        Ledger(path, KEY, site="north")
    assert path.read_bytes() == written.before + torn
    assert not list(tmp_path.glob("ledger.torn-*"))


@CHEAP
@given(data=st.data())
def test_zeros_before_the_last_line_are_tampering_for_any_tip(written: Written, data: st.DataObject) -> None:
    first = written.before.index(b"\n")
    start = data.draw(st.integers(0, first - 1))
    end = data.draw(st.integers(start + 1, first))
    for tip in (written.earlier_tip, written.tip):
        spoiled = written.before[:start] + bytes(end - start) + written.before[end:]
        assert (1, "altered") in {(f.line, f.kind) for f in look(spoiled + written.last, tip).findings}


def test_two_partial_lines_are_tampering(written: Written) -> None:
    torn = bytes(9) + written.last[9:]
    assert not look(written.before + torn + torn, written.earlier_tip).sound


def test_a_line_of_another_ledger_or_place_is_reported_as_added(written: Written) -> None:
    for line in (b'{"schema":1,"ledger":"other', written.before[:40].replace(b"1", b"2", 1), written.last[1:90]):
        kinds = {finding.kind for finding in look(written.before + line, written.earlier_tip).findings}
        assert kinds == {"added"}


def test_a_cut_hidden_by_an_older_tip_leaves_the_cut_line_and_is_revealed_by_a_recorded_end(
    written: Written, tmp_path: Path
) -> None:
    path = place(tmp_path, written.before + written.last, written.tip)
    end = verify_ledger(path)["end"]
    path = place(tmp_path, written.before + written.last[:-1], written.earlier_tip)
    said = " ".join(verify_ledger(path)["verdict"])
    assert "a crash" in said
    assert "or a removed part" in said
    assert verify_ledger(path, seen=end)["status"] == "altered"
    Ledger(path, KEY, site="north").close()
    (kept,) = tmp_path.glob("ledger.torn-*")
    assert kept.read_bytes() == written.last[:-1]
    assert verify_ledger(path, seen=end)["status"] == "altered"


def test_a_kept_partial_line_that_is_missing_or_altered_is_reported(written: Written, tmp_path: Path) -> None:
    path = place(tmp_path, written.before + written.last[:99], written.earlier_tip)
    Ledger(path, KEY, site="north").close()
    (kept,) = tmp_path.glob("ledger.torn-*")
    assert kept.stat().st_mode & 0o777 == 0o600
    for spoil in (lambda: kept.write_bytes(b"{}"), kept.unlink):
        spoil()
        report = verify_ledger(path)
        assert (report["status"], report["torn_lines_lost"]) == ("sound", [kept.name])
        assert any("is missing next to the ledger or was changed" in said for said in report["sentences"])


PLANTED = b"planted"
DIGEST = hashlib.sha256(PLANTED).hexdigest()[:12]


@pytest.mark.parametrize(
    ("rest", "content"),
    [
        (f"2-{DIGEST}", b"something else"),
        (f"9-{DIGEST}", PLANTED),
        (f"0-{DIGEST}", PLANTED),
        (f"2-{DIGEST}.bak", PLANTED),
        (f"2-{DIGEST.upper()}", PLANTED),
        ("note", PLANTED),
        (f"2-{DIGEST}", None),
        (f"2-{hashlib.sha256(b'').hexdigest()[:12]}", b""),
    ],
)
def test_files_that_do_not_belong_to_the_ledger_are_ignored_and_the_ledger_opens(
    tmp_path: Path, rest: str, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path, KEY, site="north").close()
    before = path.read_bytes()
    (first,) = look(before, tip_path(path).read_bytes()).entries
    planted = tmp_path / f"ledger.torn-{first.ledger[:8]}-{rest}"
    if content is None:
        planted.mkdir()
    else:
        planted.write_bytes(content)
    link = tmp_path / f"ledger.torn-{first.ledger[:8]}-1-{DIGEST}"
    (tmp_path / "elsewhere").write_bytes(PLANTED)
    link.symlink_to(tmp_path / "elsewhere")
    Ledger(path, KEY, site="north").close()
    assert path.read_bytes() == before
    assert sum("is skipped" in record.getMessage() for record in caplog.records) == 2


@given(line=st.binary(max_size=30).filter(lambda line: b"\n" not in line), zeros=st.integers(0, 9))
def test_whole_lines_without_zeros_are_never_taken_for_partial(line: bytes, zeros: int) -> None:
    lines, tail = split_lines(line + b"\n" + bytes(zeros))
    assert b"\n".join([*lines, tail]) == line + b"\n" + bytes(zeros)
    assert (lines == [line]) == (b"\0" not in line)


@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/passwd", "", ".", ".."])
@pytest.mark.parametrize("size", ["1", "-1", "many"])
def test_a_foreign_ledger_cannot_name_files_outside_its_folder(
    written: Written, tmp_path: Path, file: str, size: str
) -> None:
    path = place(tmp_path, b"", b"")
    ledger = Ledger(path, KEY, site="north")
    about = {"torn_bytes": size, "torn_sha256": "0" * 64, "torn_file": file}
    ledger.append(Record("site", "recovered", "noted", about=about))
    ledger.close()
    report = verify_ledger(path)
    assert (report["status"], report["torn_lines_lost"]) == ("sound", [])


def test_only_zeros_may_replace_written_bytes() -> None:
    assert all(is_torn(found, b"abcd") for found in (b"", b"ab", b"\0b", b"a\0c", b"abcd", bytes(9), b"ab" + bytes(9)))
    assert not any(is_torn(found, b"abcd") for found in (b"b", b"abcde", b"a\0d", b"abcd\0e"))
