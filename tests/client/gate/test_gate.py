"""Tests of the whole gate: every message is in the ledger, and a gate whose files fail a check does not open."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.gate.gate import Gate
from client.gate.open_gate import LEDGER_FILE, SITE_KEY, check_gate, open_gate
from client.gate.privacy_budget import BUDGET_FILE
from client.ledger.ledger import tip_path
from ept_fed.errors import InputRefusedError
from ept_fed.protocol.frames import encode_frame
from ept_fed.protocol.messages import TRAIN_METRICS, RoundReply
from tests.client.gated_kit import BACKBONE, COUNTS, LAYOUT, Kit, answer, evaluation, request, rules_of


def test_a_run_passes_and_every_message_is_in_the_ledger(kit: Kit) -> None:
    gate = kit.open()
    kit.join(gate)
    for number in (1, 2):
        asked = request(number)
        kit.admit(gate, asked)
        left = gate.release(asked, answer(asked), LAYOUT)
        left.check(asked.header, LAYOUT)
        assert np.array_equal(left.payload, answer(asked).payload)
    kit.admit(gate, evaluation(2))
    gate.release(evaluation(2), answer(evaluation(2)), LAYOUT)
    entries = kit.entries()
    assert [(entry.direction, entry.kind, entry.round) for entry in entries] == [
        ("site", "opened", None),
        ("in", "introduce", None),
        ("out", "introduction", None),
        *[(direction, "train", number) for number in (1, 2) for direction in ("in", "out")],
        ("in", "evaluate", 2),
        ("out", "evaluate", 2),
    ]
    assert all(entry.tensors == LAYOUT.shapes for entry in entries[2:5])
    assert (entries[4].images, entries[4].metrics) == (COUNTS["train"], TRAIN_METRICS)
    assert (entries[2].images, entries[2].about["validation_images"]) == (COUNTS["train"], str(COUNTS["validation"]))
    assert entries[4].bytes == len(encode_frame(left_of(gate, kit)))
    assert kit.is_sound()


def left_of(gate: Gate, kit: Kit) -> RoundReply:
    asked = request(1)
    kit.admit(gate, asked)
    return gate.release(asked, answer(asked), LAYOUT)


def test_without_a_policy_nothing_leaves_and_the_log_names_the_backbone_to_pin(kit: Kit, caplog: Any) -> None:
    kit.close()
    gate = open_gate(kit.settings, kit.folder)
    kit.gates.append(gate)
    assert rules_of(lambda: kit.join(gate)) == ("incoming.backbone",)
    assert BACKBONE in caplog.text
    assert BACKBONE in kit.entries()[-1].reason


def test_a_message_that_cannot_be_recorded_does_not_pass(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = kit.open()
    kit.join(gate)
    asked = request()
    kit.admit(gate, asked)

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.ledger.ledger.os.fsync", fail)
    for act in (lambda: kit.admit(gate, request(2)), lambda: gate.release(asked, answer(asked), LAYOUT)):
        with pytest.raises(OSError, match="No space left"):
            act()
    monkeypatch.undo()
    kit.admit(gate, request(2))
    assert kit.is_sound()


def test_a_refusal_by_the_worker_is_recorded_as_one_line_of_text(kit: Kit) -> None:
    kit.open().refused("in", "unreadable\n", "a frame\x00cannot be read", b"junk")
    entry = kit.entries()[-1]
    assert (entry.decision, entry.rule, entry.kind, entry.bytes) == ("refused", "protocol", "unreadable ", 4)
    assert entry.reason.isprintable()


@pytest.mark.parametrize("spoil", ["key", "open key", "ledger", "policy", "second"])
def test_a_gate_that_fails_a_check_does_not_open(kit: Kit, spoil: str) -> None:
    kit.join(kit.open())
    if spoil != "second":
        kit.close()
    if spoil == "key":
        (kit.folder / SITE_KEY).write_text("no key")
    elif spoil == "open key":
        (kit.folder / SITE_KEY).chmod(0o644)
    elif spoil == "ledger":
        ledger = kit.folder / "state" / LEDGER_FILE
        ledger.write_bytes(ledger.read_bytes().replace(b'"images":40', b'"images":41'))
    elif spoil == "policy":
        kit.settings.policy.write_text("schema: 1\nincoming: {rouns: [1, 2]}")
    with pytest.raises(InputRefusedError):
        open_gate(kit.settings, kit.folder)
    if spoil == "second":
        check_gate(kit.settings, kit.folder)
    else:
        with pytest.raises(InputRefusedError):
            check_gate(kit.settings, kit.folder)


@pytest.mark.parametrize(("ledger", "tip"), [(b"", None), (b"", b""), (b"", b'{"schema":1,"led'), (None, b"")])
def test_a_site_starts_after_a_crash_during_the_creation_of_its_ledger(
    kit: Kit, ledger: bytes | None, tip: bytes | None
) -> None:
    state = kit.settings.worker.state
    state.mkdir()
    for name, content in ((LEDGER_FILE, ledger), (tip_path(Path(LEDGER_FILE)).name, tip)):
        if content is not None:
            (state / name).write_bytes(content)
    check_gate(kit.settings, kit.folder)
    kit.join(kit.open())
    assert kit.is_sound()
    assert "no complete entry" in kit.entries()[0].about["left_behind"]


@pytest.mark.parametrize("name", [LEDGER_FILE, tip_path(Path(LEDGER_FILE)).name, BUDGET_FILE])
def test_a_gate_whose_files_cannot_be_read_does_not_open(kit: Kit, name: str) -> None:
    (kit.settings.worker.state / name).mkdir(parents=True)
    for look in (open_gate, check_gate):
        with pytest.raises(InputRefusedError, match="cannot be read"):
            look(kit.settings, kit.folder)


def test_a_gate_whose_ledger_cannot_be_written_does_not_open(kit: Kit) -> None:
    kit.settings.worker.state.write_text("a file where the folder should be")
    with pytest.raises(InputRefusedError, match="cannot be opened"):
        open_gate(kit.settings, kit.folder)


def test_checking_a_gate_creates_no_ledger(kit: Kit) -> None:
    check_gate(kit.settings, kit.folder)
    assert not kit.settings.worker.state.exists()
