"""Tests of the ledger after an interruption at any write, sync or truncation (kill, full disk, power cut) or a cut."""

import errno
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client.audit.report import describe, verify_ledger
from client.ledger import ledger as ledger_module
from client.ledger.entry import FIRST
from client.ledger.ledger import LEFT, Ledger, Record, tip_path
from client.ledger.partial_writes import load_torn, set_aside
from client.ledger.verify import Examination, examine

KEY = ec.generate_private_key(ec.SECP384R1())
MESSAGE = Record("out", "train", "passed", run="run", round=1, bytes=100, sha256=FIRST)
SECTOR = 512
TORN = "ledger.torn-*"


class State(NamedTuple):
    """Bytes of ledger and tip (None for a missing file), and names and bytes of saved partially written lines."""

    ledger: bytes | None
    tip: bytes | None
    torn: frozenset[tuple[str, bytes]] = frozenset()


class KilledError(BaseException):
    """Simulates a killed process: no error handler of the ledger catches it."""


@dataclass
class Disk:
    """Replaces `os` in the ledger; event number `fails_at` fails, a write after the share `part` of its bytes.

    Attributes:
        fails_at: 1, 2, 3, …; 0 for never.
        part: share of the bytes that a write completes before it fails.
        full: fail once with ENOSPC, instead of killing the process.
        synced: the content of each file that survives any power cut.
        named: files whose names in the folder survive any power cut.
    """

    fails_at: int = 0
    part: float = 0.0
    full: bool = False
    events: int = 0
    dead: bool = False
    synced: dict[str, bytes] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        self._pass_event()
        return os.open(path, flags, mode)

    def write(self, handle: int, content: bytes) -> int:
        self._pass_event(lambda: os.write(handle, content[: int(self.part * len(content))]))
        return os.write(handle, content)

    def pwrite(self, handle: int, content: bytes, offset: int) -> int:
        fresh = os.fstat(handle).st_size == 0
        # An existing sector is overwritten completely or not at all.
        done = int(self.part * len(content)) if fresh else SECTOR * int(self.part)
        self._pass_event(lambda: os.pwrite(handle, content[:done], offset))
        return os.pwrite(handle, content, offset)

    def ftruncate(self, handle: int, size: int) -> None:
        self._pass_event()
        os.ftruncate(handle, size)

    def fsync(self, handle: int) -> None:
        self._pass_event()
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        self.synced[str(path)] = path.read_bytes()

    def sync_folder(self, folder: Path) -> None:
        self._pass_event()
        self.named |= {str(file) for file in folder.iterdir()}

    def set_aside(self, *given: Any) -> None:
        self._pass_event()
        set_aside(*given)

    def _pass_event(self, begun: Any = lambda: None) -> None:
        if self.dead:
            raise KilledError
        self.events += 1
        if self.events == self.fails_at:
            begun()
            self.dead = not self.full
            raise OSError(errno.ENOSPC, "No space left on device") if self.full else KilledError


def run(path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, appends: int = 2) -> int:
    """Open a ledger and append to it until something fails; return how many entries were confirmed."""
    confirmed = 0
    with monkeypatch.context() as patched:
        patched.setattr(ledger_module, "os", disk)
        for name in ("set_aside", "sync_folder"):
            patched.setattr(ledger_module, name, getattr(disk, name))
        ledger = None
        try:
            ledger = Ledger(path, KEY, site="north")
            for _ in range(appends):
                try:
                    confirmed = ledger.append(MESSAGE).sequence
                except OSError:
                    continue
        except (KilledError, OSError):
            pass
        finally:
            if ledger is not None:
                ledger.close()
    return confirmed


def read(path: Path) -> State:
    return State(
        path.read_bytes() if path.exists() else None,
        tip_path(path).read_bytes() if tip_path(path).exists() else None,
        frozenset((file.name, file.read_bytes()) for file in path.parent.glob(TORN)),
    )


def put(path: Path, state: State) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in path.parent.glob(TORN):
        file.unlink()
    for name, content in state.torn:
        (path.parent / name).write_bytes(content)
    for file, content in ((path, state.ledger), (tip_path(path), state.tip)):
        if content is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(content)


def mix_sectors(old: bytes, new: bytes) -> Iterator[bytes]:
    """Yield possible contents of an overwritten file: some sectors are old and some are new."""
    size = max(len(old), len(new))
    for first, then, length in itertools.product((old, new), (old, new), {len(old), len(new)}):
        for end in range(SECTOR, size, SECTOR):
            yield (first.ljust(size, b"\0")[:end] + then.ljust(size, b"\0")[end:])[:length]


def after_power_cut(path: Path, disk: Disk) -> Iterator[State]:
    """Yield the states that a power cut may leave: each unsynced change is on the disk, in part, or not at all."""
    ways = []
    state = read(path)
    for file, content in ((path, state.ledger), (tip_path(path), state.tip)):
        held = disk.synced.get(str(file), b"")
        if content is None:
            ways.append([None])
            continue
        found: list[bytes | None] = [held, content]
        if file == path and content.startswith(held):
            ends = [end for end in (len(held) + 9, (len(held) + len(content)) // 2) if end <= len(content)]
            found += [content[:end] for end in ends]
            found += [content[:end] + bytes(len(content) - end) for end in ends]
            found += [held + bytes(end - len(held)) + content[end:] for end in ends]
            found += [content[:start] + bytes(9) + content[start + 9 :] for start in ends[1:]]
            found.append(held + bytes(4096))
        if file == path:
            found += list(mix_sectors(held, content))
        elif not held and content:
            found.append(bytes(len(content)))
        ways.append([*found, *([] if str(file) in disk.named else [None])])
    yield from (State(*left, state.torn) for left in itertools.product(*ways))


def check(path: Path, state: State, confirmed: int, monkeypatch: pytest.MonkeyPatch) -> Examination:
    """Check that a crash is no tampering, loses no confirmed entry, and is recorded when the ledger continues."""
    put(path, state)
    content, tip, aside = state
    found = examine(content or b"", tip, KEY.public_key())
    assert not found.findings, (confirmed, found.findings)
    assert len(found.entries) >= confirmed
    if found.unbegun:
        assert confirmed == 0
    assert run(path, Disk(), monkeypatch, appends=1) > confirmed
    left = content or b""
    content, tip, kept = read(path)
    assert content is not None
    after = examine(content, tip, KEY.public_key(), every_signature=True)
    assert after.sound
    assert after.unconfirmed == after.torn == 0
    assert [entry.sequence for entry in after.entries[:confirmed]] == list(range(1, confirmed + 1))
    if found.unbegun:
        assert (LEFT in after.entries[0].about) == (state != NOTHING)
    assert aside <= kept
    assert not found.torn or left[-found.torn :] in dict(kept).values()
    recorded = [torn for entry in after.entries if (torn := load_torn(entry.about)) is not None]
    assert {torn.file for torn in recorded} == {name for name, _ in kept}
    assert all(torn.is_kept_beside(path) for torn in recorded)
    noted = [entry.about for entry in after.entries[len(found.entries) :] if "unconfirmed_entries" in entry.about]
    assert bool(noted) == bool(found.unconfirmed)
    return found


@dataclass(frozen=True)
class Begun:
    """A ledger after its first entry, and the same ledger after one more."""

    first: bytes
    first_tip: bytes
    whole: State


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Begun:
    path = tmp_path_factory.mktemp("begun") / "state" / "ledger.jsonl"
    ledger = Ledger(path, KEY, site="north")
    first, first_tip = path.read_bytes(), tip_path(path).read_bytes()
    ledger.append(MESSAGE)
    ledger.close()
    return Begun(first, first_tip, read(path))


def count_events(path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> int:
    disk = Disk()
    put(path, state)
    run(path, disk, monkeypatch)
    return disk.events


PARTS = (0.0, 0.02, 0.5, 1.0)
NOTHING = State(None, None)


@pytest.mark.parametrize("start", ["nothing", "begun"])
@pytest.mark.parametrize("full", [False, True], ids=["killed", "full disk"])
def test_a_ledger_interrupted_at_any_event_continues_and_is_never_reported_as_altered(
    tmp_path: Path, begun: Begun, start: str, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state" / "ledger.jsonl"
    state = begun.whole if start == "begun" else NOTHING
    kinds = set()
    for fails_at in range(1, count_events(path, state, monkeypatch) + 1):
        for part in PARTS:
            put(path, state)
            confirmed = run(path, Disk(fails_at, part, full), monkeypatch)
            found = check(path, read(path), confirmed, monkeypatch)
            kinds.add((found.unbegun, bool(found.torn), bool(found.unconfirmed)))
    assert full or start == "begun" or {(True, False, False), (False, True, False), (False, False, True)} <= kinds


@pytest.mark.parametrize("start", ["nothing", "begun", "torn", "torn again"])
def test_a_ledger_after_a_power_cut_at_any_event_continues_and_is_never_reported_as_altered(
    tmp_path: Path, begun: Begun, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state" / "ledger.jsonl"
    content = begun.whole.ledger or b""
    state = {
        "nothing": NOTHING,
        "begun": begun.whole,
        "torn": State(begun.first[:-1], begun.first_tip),
        "torn again": State(content[:-1], begun.first_tip),
    }[start]
    seen = set()
    for fails_at in range(1, count_events(path, state, monkeypatch) + 1):
        put(path, state)
        disk = Disk(fails_at, 1.0)
        if start != "nothing":
            disk.named = {str(path), str(tip_path(path))}
            disk.synced = {str(path): state.ledger or b"", str(tip_path(path)): state.tip or b""}
        confirmed = run(path, disk, monkeypatch)
        for left in after_power_cut(path, disk):
            if (left, confirmed) not in seen:
                seen.add((left, confirmed))
                check(path, left, confirmed, monkeypatch)
    assert len(seen) > 20


def test_a_crash_during_the_recovery_from_a_crash_is_no_tampering(
    tmp_path: Path, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state" / "ledger.jsonl"
    content, tip, _ = begun.whole
    assert content is not None
    states: list[State] = [
        State(content + b'{"schema":1', tip),
        State(content, begun.first_tip),
        State(b"", begun.first_tip[:40]),
        State(begun.first[:300], begun.first_tip),
    ]
    for state in states:
        for fails_at in range(1, count_events(path, state, monkeypatch) + 1):
            for part in (0.0, 0.5):
                put(path, state)
                confirmed = run(path, Disk(fails_at, part), monkeypatch)
                check(path, read(path), confirmed, monkeypatch)


def test_every_cut_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state" / "ledger.jsonl"
    for appends in (0, 1, 2):
        put(path, NOTHING)
        run(path, Disk(), monkeypatch, appends)
        content, tip, _ = read(path)
        assert content is not None
        for length in range(0, len(content), 7):
            for left in (tip, b"", None, (tip or b"")[:99]):
                found = examine(content[:length], left, KEY.public_key())
                assert not found.sound
                if found.unbegun:
                    # Before the first message, only the opening entry can be lost.
                    assert left is not tip or appends == 0
                    (said,) = describe(found, "not checked")["verdict"]
                    assert "crash" in said
                    assert "emptied" in said


def test_an_emptied_ledger_differs_from_a_crash_by_its_tip_or_a_recorded_end(tmp_path: Path, begun: Begun) -> None:
    path = tmp_path / "ledger.jsonl"
    put(path, begun.whole)
    end = verify_ledger(path)["end"]
    put(path, State(b"", begun.whole.tip))
    assert verify_ledger(path)["status"] == "altered"
    put(path, State(b"", b""))
    assert verify_ledger(path)["status"] == "unbegun"
    assert verify_ledger(path, seen=end)["status"] == "altered"


def test_a_partial_last_line_is_reported_as_a_crash_or_a_cut(tmp_path: Path, begun: Begun) -> None:
    path = tmp_path / "ledger.jsonl"
    put(path, begun.whole)
    ledger = Ledger(path, KEY, site="north")
    ledger.append(MESSAGE)
    ledger.close()
    put(path, State(path.read_bytes()[:-50], begun.whole.tip))
    report = verify_ledger(path)
    assert report["status"] == "sound"
    assert any("a partially written line" in said and "or a removed part" in said for said in report["verdict"])
    assert verify_ledger(path, seen="3:" + "0" * 64)["status"] == "altered"


def test_nothing_is_written_after_an_entry_that_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Disk):
        broken = False

        def fsync(self, handle: int) -> None:
            if self.broken:
                raise OSError(errno.EIO, "Input/output error")

        def ftruncate(self, handle: int, size: int) -> None:
            if self.broken:
                raise OSError(errno.EIO, "Input/output error")

    path, disk = tmp_path / "ledger.jsonl", Failing()
    monkeypatch.setattr(ledger_module, "os", disk)
    ledger = Ledger(path, KEY, site="north")
    disk.broken = True
    with pytest.raises(OSError, match="Input/output"):
        ledger.append(MESSAGE)
    disk.broken = False
    with pytest.raises(OSError, match="closed"):
        ledger.append(MESSAGE)
    Ledger(path, KEY, site="north").close()
    found = examine(path.read_bytes(), tip_path(path).read_bytes(), KEY.public_key())
    assert found.sound
    assert [entry.kind for entry in found.entries] == ["opened", "train", "recovered"]
