"""Tests of examining a ledger: every kind of tampering is found on its line, and an interruption is no tampering."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from client.ledger.entry import FIRST, Entry, Tip, hash_line, parse_entry, sign_entry
from client.ledger.ledger import Ledger, Record, tip_path
from client.ledger.verify import Examination, Seen, examine
from ept_fed.pki.signing import fingerprint

KEY, FOREIGN = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
ENTRIES = 8


def write_ledger(folder: Path, entries: int = ENTRIES, key: ec.EllipticCurvePrivateKey = KEY) -> tuple[bytes, bytes]:
    """Return a ledger with `entries` lines, and its tip."""
    path = folder / "ledger.jsonl"
    ledger = Ledger(path, key, site="north")
    for number in range(1, entries):
        refused = number % 4 == 3
        ledger.append(
            Record(
                "out" if number % 2 else "in",
                "train",
                "refused" if refused else "passed",
                run="run",
                round=number,
                tensors=(("sinks", (12, 197)),),
                bytes=9608,
                sha256=FIRST,
                rule="outgoing.head" if refused else "",
            )
        )
    ledger.close()
    return path.read_bytes(), tip_path(path).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    return write_ledger(tmp_path_factory.mktemp("ledger"))


def entries_of(content: bytes) -> list[Entry]:
    return [entry for line in content.splitlines() if (entry := parse_entry(line)) is not None]


def join(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def found(content: bytes, tip: bytes | None, **options: object) -> set[tuple[int, str]]:
    return {(finding.line, finding.kind) for finding in examine(content, tip, KEY.public_key(), **options).findings}


def rechain(entries: list[Entry], start: int, key: ec.EllipticCurvePrivateKey) -> tuple[list[bytes], bytes]:
    """Rewrite and sign the entries from index `start` on, as the key's holder could; return all lines and the tip."""
    lines = [entry.line for entry in entries[:start]]
    for entry in entries[start:]:
        changes = {"previous": hash_line(lines[-1]) if lines else FIRST, "key": fingerprint(key.public_key())}
        lines.append(sign_entry(entry.model_copy(update=changes), key).line)
    tip = Tip(ledger=entries[0].ledger, sequence=len(lines), last=hash_line(lines[-1]))
    return lines, sign_entry(tip, key).line


def test_a_sound_ledger_has_no_findings(whole: tuple[bytes, bytes]) -> None:
    quick, thorough = (examine(*whole, KEY.public_key(), every_signature=every) for every in (False, True))
    assert quick.sound
    assert thorough.sound
    assert len(quick.entries) == thorough.signatures == ENTRIES
    totals = quick.entries[-1].totals
    assert (totals.sent.messages, totals.sent.refused, totals.received.messages) == (2, 2, 3)
    assert totals.sent.bytes == 2 * 9608


def test_a_flipped_byte_is_found_on_its_line(whole: tuple[bytes, bytes]) -> None:
    content, tip = whole
    lines = content.splitlines()
    lines[4] = lines[4].replace(b'"round":4', b'"round":5')
    assert found(join(lines), tip) == {(5, "altered")}


@given(data=st.data())
def test_no_bit_can_be_flipped_unnoticed(whole: tuple[bytes, bytes], data: st.DataObject) -> None:
    content, tip = whole
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    result = examine(bytes(flipped), tip, KEY.public_key())
    line = content[:place].count(b"\n") + 1
    assert not result.sound
    # A flip can remove a line end, which joins two lines, or create one, which splits a line.
    assert any(finding.line in (line, line + 1) for finding in result.findings)


@pytest.mark.parametrize("number", [2, 5, 7])
def test_a_dropped_entry_is_found_at_its_line(whole: tuple[bytes, bytes], number: int) -> None:
    lines = whole[0].splitlines()
    del lines[number - 1]
    assert found(join(lines), whole[1]) == {(number, "missing")}


def test_a_dropped_beginning_is_found(whole: tuple[bytes, bytes]) -> None:
    assert found(join(whole[0].splitlines()[2:]), whole[1]) == {(1, "missing")}


@pytest.mark.parametrize("number", [1, 5, ENTRIES])
def test_an_added_entry_is_found_on_its_line(whole: tuple[bytes, bytes], number: int) -> None:
    lines = whole[0].splitlines()
    lines.insert(number, lines[1])
    expected = {(number + 1, "added")} if number > 1 else {(3, "added")}
    assert found(join(lines), whole[1]) == expected


def test_reordered_entries_are_found_on_their_lines(whole: tuple[bytes, bytes]) -> None:
    lines = whole[0].splitlines()
    lines[3], lines[4] = lines[4], lines[3]
    assert found(join(lines), whole[1]) == {(4, "reordered"), (5, "reordered")}


def test_an_entry_replaced_by_the_keys_holder_is_found_on_its_line(whole: tuple[bytes, bytes]) -> None:
    entries = entries_of(whole[0])
    lines = whole[0].splitlines()
    lines[5] = sign_entry(entries[5].model_copy(update={"reason": "another"}), KEY).line
    assert found(join(lines), whole[1]) == {(6, "replaced")}


def test_the_last_entry_replaced_is_found(whole: tuple[bytes, bytes]) -> None:
    lines = whole[0].splitlines()
    lines[-1] = sign_entry(entries_of(whole[0])[-1].model_copy(update={"reason": "another"}), KEY).line
    assert found(join(lines), whole[1]) == {(ENTRIES, "replaced")}


@pytest.mark.parametrize("cut", [1, 3, ENTRIES - 1])
def test_a_cut_tail_is_found(whole: tuple[bytes, bytes], cut: int) -> None:
    assert found(join(whole[0].splitlines()[:-cut]), whole[1]) == {(ENTRIES - cut + 1, "cut")}


def test_a_tail_cut_within_a_line_is_found(whole: tuple[bytes, bytes]) -> None:
    assert found(whole[0][:-20], whole[1]) == {(ENTRIES, "cut")}


@pytest.mark.parametrize("named", [True, False])
def test_a_foreign_signature_is_found_on_its_line(whole: tuple[bytes, bytes], named: bool) -> None:
    lines = whole[0].splitlines()
    changes = {"key": fingerprint(FOREIGN.public_key())} if named else {"reason": "another"}
    lines[3] = sign_entry(entries_of(whole[0])[3].model_copy(update=changes), FOREIGN).line
    assert found(join(lines), whole[1]) == {(4, "foreign key" if named else "altered")}


@pytest.mark.parametrize("signature", ["", "AAAA", "no base64!", "é"])
def test_an_invalid_signature_is_found_on_its_line(whole: tuple[bytes, bytes], signature: str) -> None:
    lines = whole[0].splitlines()
    lines[3] = entries_of(whole[0])[3].model_copy(update={"signature": signature}).line
    examined = examine(join(lines), whole[1], KEY.public_key(), every_signature=True)
    assert 4 in {finding.line for finding in examined.findings}


def test_a_key_changed_midway_is_found_from_there_on(whole: tuple[bytes, bytes]) -> None:
    lines, tip = rechain(entries_of(whole[0]), 4, FOREIGN)
    assert found(join(lines), tip) >= {(number, "foreign key") for number in range(5, ENTRIES + 1)}
    assert (4, "foreign key") not in found(join(lines), tip)


def test_a_ledger_rewritten_with_another_key_is_found_only_by_the_sites_certificate(tmp_path: Path) -> None:
    content, tip = write_ledger(tmp_path, key=FOREIGN)
    assert examine(content, tip).sound
    assert (1, "foreign key") in found(content, tip)


def test_a_rewound_counter_is_found_on_its_line(whole: tuple[bytes, bytes]) -> None:
    entries = entries_of(whole[0])
    rewound = [entry.model_copy(update={"sequence": entry.sequence - 3}) for entry in entries[5:]]
    lines, tip = rechain([*entries[:5], *rewound], 5, KEY)
    assert (6, "rewound") in found(join(lines), tip)


def test_rewound_totals_are_found_on_their_line(whole: tuple[bytes, bytes]) -> None:
    entries = entries_of(whole[0])
    entries[6] = entries[6].model_copy(update={"totals": entries[2].totals})
    lines, tip = rechain(entries, 6, KEY)
    assert found(join(lines), tip) == {(7, "totals"), (8, "totals")}


def test_two_ledgers_of_one_site_spliced_are_found_where_they_meet(whole: tuple[bytes, bytes], tmp_path: Path) -> None:
    other, tip = write_ledger(tmp_path)
    lines = whole[0].splitlines()[:4] + other.splitlines()[4:]
    assert {(number, "spliced") for number in range(5, ENTRIES + 1)} <= found(join(lines), tip)
    assert min(line for line, _ in found(join(lines), tip)) == 5


def test_the_keys_holder_cannot_rewrite_entries_before_a_recorded_end(whole: tuple[bytes, bytes]) -> None:
    entries = entries_of(whole[0])
    seen = Seen(6, hash_line(entries[5].line))
    assert examine(*whole, seen=seen).sound
    cut, tip = rechain(entries[:5], 5, KEY)
    assert examine(join(cut), tip, KEY.public_key()).sound
    assert (6, "cut") in found(join(cut), tip, seen=seen)
    entries[5] = entries[5].model_copy(update={"reason": "another"})
    rewritten, tip = rechain(entries, 5, KEY)
    assert examine(join(rewritten), tip, KEY.public_key()).sound
    assert (6, "replaced") in found(join(rewritten), tip, seen=seen)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tip: None,
        lambda tip: b"",
        lambda tip: tip[:100],
        lambda tip: tip.replace(b'"sequence":8', b'"sequence":7'),
    ],
)
def test_a_tip_that_is_missing_or_altered_is_found(
    whole: tuple[bytes, bytes], spoil: Callable[[bytes], bytes | None]
) -> None:
    assert found(whole[0], spoil(whole[1])) == {(ENTRIES + 1, "tip")}


def test_the_traces_of_an_interruption_are_no_tampering(whole: tuple[bytes, bytes]) -> None:
    lines = whole[0].splitlines()
    earlier = rechain(entries_of(whole[0])[:-1], ENTRIES - 1, KEY)[1]
    for torn in (1, 40, 700):
        result = examine(join(lines[:-1]) + lines[-1][:torn], earlier, KEY.public_key())
        assert (result.sound, result.torn, result.unconfirmed) == (True, torn, 0)
    result = examine(whole[0], earlier, KEY.public_key())
    assert (result.sound, result.torn, result.unconfirmed) == (True, 0, 1)


def test_bytes_that_do_not_begin_an_entry_are_reported_as_added(whole: tuple[bytes, bytes]) -> None:
    assert found(whole[0] + b'{"schema":1,"ledger":"other', whole[1]) == {(ENTRIES + 1, "added")}


def test_an_entry_after_the_tip_must_be_signed_by_the_site(whole: tuple[bytes, bytes]) -> None:
    lines = whole[0].splitlines()
    earlier = rechain(entries_of(whole[0])[:-1], ENTRIES - 1, KEY)[1]
    lines[-1] = sign_entry(entries_of(whole[0])[-1], FOREIGN).line
    assert not examine(join(lines), earlier, KEY.public_key()).sound


@given(content=st.binary(max_size=300), tip=st.one_of(st.none(), st.binary(max_size=300)))
def test_arbitrary_bytes_are_never_a_sound_ledger_and_raise_no_error(content: bytes, tip: bytes | None) -> None:
    result: Examination = examine(content, tip)
    assert not result.sound
