"""Tests of the privacy budget: it spans runs, is written before it is spent, and is not used when it is damaged."""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.audit.begin_ledger import begin_ledger
from client.audit.report import show_ledger, verify_ledger
from client.gate.gate import Gate
from client.gate.incoming import splits_of
from client.gate.open_gate import check_gate, open_gate
from client.gate.privacy_budget import (
    BUDGET_FILE,
    UNSPENT,
    BudgetBrokenError,
    BudgetLedger,
    Charged,
    OverspentError,
    read_budget,
)
from client.gate.violations import PolicyViolationError
from client.ledger.ledger import tip_path
from client.site.privacy_plan import RoundCost
from client.worker.worker import Worker
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.privacy.dp.accountant import GaussianSteps, spent_epsilon
from ept_fed.protocol.frames import Introduce, Refusal, decode_frame, encode_frame
from ept_fed.protocol.messages import Header, RoundReply, RoundRequest
from ept_fed.protocol.proposal import propose
from ept_fed.validation.load_site import SiteSettings, load_site_settings

STEPS = GaussianSteps(2.0, 0.25, 4)
DELTA = 1e-5
COST = RoundCost("poisson-subsampled gaussian", STEPS, clip=1.0, delta=DELTA)


def charge(ledger: BudgetLedger, round_number: int = 1, run: str = "run-a", epsilon: float | None = None) -> float:
    return ledger.charge(run, round_number, COST, delta=DELTA, epsilon=epsilon).epsilon


def filled(path: Path, rounds: int = 3) -> Path:
    ledger = BudgetLedger(path)
    for round_number in range(1, rounds + 1):
        charge(ledger, round_number)
    return path


def test_epsilon_adds_up_over_rounds_runs_and_restarts(tmp_path: Path) -> None:
    path = tmp_path / "state" / BUDGET_FILE
    for count, run in enumerate(("run-a", "run-a", "run-b", "run-b"), 1):
        ledger = BudgetLedger(path)
        assert charge(ledger, count, run) == spent_epsilon([STEPS] * count, DELTA)
    assert [(line.sequence, line.run) for line in read_budget(path)] == [
        (1, "run-a"), (2, "run-a"), (3, "run-b"), (4, "run-b")
    ]  # fmt: skip
    assert all(file.stat().st_mode & 0o077 == 0 for file in (path.parent, *path.parent.iterdir()))


def test_the_round_that_would_overspend_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    ledger = BudgetLedger(tmp_path / BUDGET_FILE)
    limit = spent_epsilon([STEPS] * 3, DELTA)
    for round_number in (1, 2, 3):
        charge(ledger, round_number, epsilon=limit)
    before = ledger.path.read_bytes()
    with pytest.raises(OverspentError, match="is spent"):
        charge(ledger, 4, epsilon=limit)
    assert ledger.path.read_bytes() == before
    with pytest.raises(OverspentError):
        charge(BudgetLedger(ledger.path), 1, run="run-b", epsilon=limit)


def test_without_a_bound_no_round_is_charged_twice(tmp_path: Path) -> None:
    ledger = BudgetLedger(tmp_path / BUDGET_FILE)
    charge(ledger, 1)
    charge(ledger, 2)
    charge(ledger, 1, run="run-b")
    with pytest.raises(OverspentError, match="no budget bounds repetitions"):
        charge(BudgetLedger(ledger.path), 1)
    assert charge(ledger, 1, epsilon=1e9) == spent_epsilon([STEPS] * 4, DELTA)


def test_exactly_the_ends_that_a_budget_had_are_still_there(tmp_path: Path) -> None:
    ledger = BudgetLedger(tmp_path / BUDGET_FILE)
    ends = [ledger.end]
    for round_number in (1, 2):
        charge(ledger, round_number)
        ends.append(ledger.end)
    assert ends[0] == UNSPENT
    for budget in (ledger, BudgetLedger(ledger.path)):
        assert all(budget.holds(end) for end in ends)
        others = (f"{number}:{end.partition(':')[2]}" for number in range(-1, 5) for end in ends)
        assert not any(budget.holds(other) for other in {*others, "", ":", "x:y", ends[-1][:-1]} - set(ends))


def test_a_line_holds_the_accounting_parameters_of_its_round(tmp_path: Path) -> None:
    line = json.loads(filled(tmp_path / BUDGET_FILE, 1).read_text())
    assert set(line) == {
        "schema", "sequence", "time", "run", "round", "mechanism", "noise_multiplier", "sampling_rate", "steps",
        "clip", "delta", "epsilon", "previous",
    }  # fmt: skip
    assert (line["noise_multiplier"], line["sampling_rate"], line["steps"]) == (2.0, 0.25, 4)
    assert (line["round"], line["clip"], line["delta"], line["mechanism"]) == (1, COST.clip, DELTA, COST.mechanism)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "an altered number": lambda content: content.replace(b'"steps":4', b'"steps":1', 1),
    "an altered last line": lambda content: b'"steps":1'.join(content.rsplit(b'"steps":4', 1)),
    "a lost first line": lambda content: content.split(b"\n", 1)[1],
    "two lost last lines": lambda content: b"".join(content.splitlines(keepends=True)[:-2]),
    "a line twice": lambda content: content + content.splitlines(keepends=True)[-1],
    "lines in another order": lambda content: b"".join(content.splitlines(keepends=True)[::-1]),
    "an end that is not the last line's": lambda content: content[:-20] + b"}",
    "a torn line after the last": lambda content: content + content[:50],
    "a torn line before the last": lambda content: content.replace(b'"steps":4', bytes(9), 1),
    "nothing": lambda _: b"",
    "no text": lambda content: b"\xff\xfe" + content,
    "an unknown key": lambda content: content.replace(b'"schema":1', b'"schema":1,"forgiven":true', 1),
}


# Damage to the last line only: the tip has a copy of this line, so it can be restored.
INTERRUPTED: dict[str, Callable[[bytes], bytes]] = {
    "a torn end": lambda content: content[:-20],
    "a missing end of line": lambda content: content[:-1],
    "a lost last line": lambda content: b"".join(content.splitlines(keepends=True)[:-1]),
    "zeros in the last line": lambda content: content[:-90] + bytes(50) + content[-40:],
    "zeros for the last line": lambda content: content[: content[:-1].rindex(b"\n") + 1] + bytes(512),
    "a torn end and zeros after it": lambda content: content[:-20] + bytes(512),
}


@pytest.mark.parametrize("kind", INTERRUPTED)
def test_a_round_with_a_partially_written_line_counts_as_spent_at_full_cost(tmp_path: Path, kind: str) -> None:
    path = filled(tmp_path / BUDGET_FILE)
    whole, three = path.read_bytes(), spent_epsilon([STEPS] * 3, DELTA)
    left = INTERRUPTED[kind](whole)
    path.write_bytes(left)
    assert read_budget(path)[-1].epsilon == three
    ledger = BudgetLedger(path)
    assert ledger.owed == ledger.charged[-1]
    assert path.read_bytes() == left
    with pytest.raises(OverspentError):
        charge(ledger, 4, epsilon=three)
    assert path.read_bytes() == whole
    assert charge(ledger, 4) == spent_epsilon([STEPS] * 4, DELTA)
    assert path.read_bytes().startswith(whole)
    assert len(BudgetLedger(path).charged) == 4


def test_an_interrupted_charge_is_either_spent_or_never_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        pass

    done = 0
    for fails_at in itertools.count(1):
        path = filled(tmp_path / str(fails_at) / BUDGET_FILE, 2)
        ledger, before, events = BudgetLedger(path), path.with_suffix(".tip").read_bytes(), itertools.count(1)

        def killing(act: Callable[..., Any], at: int = fails_at, count: Iterator[int] = events) -> Callable[..., Any]:
            def perform(*given: Any, **named: Any) -> Any:
                if next(count) == at:
                    raise KilledError
                return act(*given, **named)

            return perform

        with monkeypatch.context() as patched:
            for name in ("open", "write", "fsync", "ftruncate"):
                patched.setattr(os, name, killing(getattr(os, name)))
            patched.setattr(Path, "replace", killing(Path.replace))
            try:
                charge(ledger, 3)
            except KilledError:
                done += 1
            else:
                break
        begun = path.with_suffix(".tip").read_bytes() != before
        assert len(BudgetLedger(path).charged) == 2 + begun
    assert done > 4


def test_tip_line_and_folder_are_on_the_disk_before_a_charge_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, sync, synced = BudgetLedger(tmp_path / BUDGET_FILE), os.fsync, []

    def note(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name.partition(".tip.")[0])
        sync(handle)

    monkeypatch.setattr(os, "fsync", note)
    charge(ledger)
    assert synced == [".budget", tmp_path.name, BUDGET_FILE, tmp_path.name]


def test_a_line_that_the_disk_took_in_part_counts_and_is_written_whole_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / BUDGET_FILE, 2)
    ledger, write = BudgetLedger(path), os.write
    with monkeypatch.context() as patched:
        patched.setattr("client.gate.privacy_budget.os.write", lambda handle, content: write(handle, content[:50]))
        with pytest.raises(OSError, match="only 50 of"):
            charge(ledger, 3)
    assert len(read_budget(path)) == 3
    charge(ledger, 4)
    assert [line.round for line in read_budget(path)] == [1, 2, 3, 4]
    assert path.read_bytes().count(b"\n") == 4


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_ledger_fails_closed(tmp_path: Path, kind: str) -> None:
    path = filled(tmp_path / BUDGET_FILE)
    whole = path.read_bytes()
    damaged = DAMAGE[kind](whole)
    assert damaged != whole
    path.write_bytes(damaged)
    with pytest.raises(BudgetBrokenError):
        BudgetLedger(path)
    with pytest.raises(BudgetBrokenError):
        read_budget(path)


@pytest.mark.parametrize("change", [(b'"sequence":1', b'"sequence":2'), (b'"previous":"0', b'"previous":"1')])
def test_a_line_that_is_not_the_next_one_is_refused_even_if_its_tip_agrees(
    tmp_path: Path, change: tuple[bytes, bytes]
) -> None:
    path = filled(tmp_path / BUDGET_FILE, 1)
    for file in (path, path.with_suffix(".tip")):
        file.write_bytes(file.read_bytes().replace(*change))
    with pytest.raises(BudgetBrokenError, match="does not follow the line before"):
        BudgetLedger(path)


@pytest.mark.parametrize("tip", [b"", b"3", b"{}", b'{"schema": 1, "sequence": -1, "hash": "0"}', b"[1]", None])
def test_a_damaged_or_missing_tip_fails_closed(tmp_path: Path, tip: bytes | None) -> None:
    path = filled(tmp_path / BUDGET_FILE)
    if tip is None:
        path.with_suffix(".tip").unlink()
    else:
        path.with_suffix(".tip").write_bytes(tip)
    with pytest.raises(BudgetBrokenError):
        BudgetLedger(path)


def test_a_removed_ledger_and_an_older_tip_are_detected(tmp_path: Path) -> None:
    path = filled(tmp_path / BUDGET_FILE, 2)
    tip = path.with_suffix(".tip").read_bytes()
    charge(BudgetLedger(path), 3)
    whole = path.with_suffix(".tip").read_bytes()
    path.with_suffix(".tip").write_bytes(tip)
    with pytest.raises(BudgetBrokenError):
        BudgetLedger(path)
    path.with_suffix(".tip").write_bytes(whole)
    path.unlink()
    with pytest.raises(BudgetBrokenError):
        BudgetLedger(path)


def test_a_charge_that_cannot_be_written_is_not_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = BudgetLedger(filled(tmp_path / BUDGET_FILE))
    with monkeypatch.context() as patched:
        patched.setattr("client.gate.privacy_budget.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            charge(ledger, 4)
    assert len(BudgetLedger(ledger.path).charged) == 3
    charge(ledger, 4)
    ledger.path.write_bytes(ledger.path.read_bytes() + b"x")
    with pytest.raises(BudgetBrokenError, match="changed"):
        charge(ledger, 5)


class Private:
    """A worker with its gate, in a run that trains with differential privacy."""

    def __init__(self, kit: Path, experiment: Experiment, budget: dict[str, float] | None) -> None:
        self.kit, self.proposal, self.limit = kit, propose(experiment), budget
        self.settings: SiteSettings = load_site_settings(kit / "site.yaml")
        self.budget = self.settings.worker.state / BUDGET_FILE
        self.before = b"", b""
        self._open()

    def _open(self) -> None:
        outgoing = {"min_images": 2, "min_training_images": 2, "budget": self.limit, "update": {"bound": 1e6}}
        policy = {
            "schema": 1,
            "outgoing": outgoing,
            "incoming": {"backbone": "first", "splits": ["train", "validation"]},
        }
        (self.kit / "policy.yaml").write_text(yaml.safe_dump(policy))
        self.gate: Gate = open_gate(self.settings, self.kit)
        self.worker = Worker(self.settings, self.gate)

    def restart(self, **changes: dict[str, float] | None) -> None:
        """Restart the worker, with another budget if one is given."""
        self.limit = changes.get("budget", self.limit)
        self.gate.close()
        self._open()

    def ask(self, run: str, round_number: int = 1, **changes: object) -> object:
        met = decode_frame(self.worker.answer(encode_frame(Introduce(run, self.proposal))))
        if isinstance(met, Refusal):
            return met
        header = Header(run, round_number, met.backbone_digest, met.layout.hash)
        settings = self.proposal.training
        given = {"phase": "train", "split": "train", "settings": settings, **changes}
        request = RoundRequest(header, rounds=self.proposal.federation.rounds, payload=met.initial, **given)  # type: ignore[arg-type]
        return decode_frame(self.worker.answer(encode_frame(request)))


@pytest.fixture
def private(make_kit: Callable[..., Path], federation: Callable[..., Experiment]) -> Iterator[Callable[..., Private]]:
    opened: list[Private] = []

    def build(budget: dict[str, float] | None, *overrides: str) -> Private:
        kit = make_kit()
        (kit / "keys").mkdir()
        key = ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (kit / "keys" / "site.key").write_bytes(key)
        (kit / "keys" / "site.key").chmod(0o600)
        opened.append(Private(kit, federation("federation.rounds=30", *overrides), budget))
        return opened[-1]

    yield build
    for one in opened:
        one.gate.close()


def refused_proposal(site: Private, run: str) -> str:
    with pytest.raises(PolicyViolationError) as refusal:
        site.gate.admit_proposal(run, site.proposal, b"frame")
    return str(refusal.value)


NOISE = "training.privacy={clip: 1.0, noise_multiplier: 4.0}"


def test_a_worker_spends_before_it_answers_and_stops_when_the_budget_is_spent(private: Callable[..., Private]) -> None:
    site = private({"epsilon": 2.0, "delta": 1e-4}, NOISE)
    replies = [site.ask("run-a", 1)]
    while isinstance(replies[-1], RoundReply) and len(replies) < 29:
        replies.append(site.ask("run-a", len(replies) + 1))
    *answered, last = replies
    assert 1 <= len(answered) < 29
    assert isinstance(last, Refusal)
    assert last.reason == "the site's gate refuses it: outgoing.budget"
    charged = read_budget(site.budget)
    assert len(charged) == len(answered)
    assert charged[-1].epsilon <= 2.0
    assert spent_epsilon([*(line.spending for line in charged), charged[-1].spending], 1e-4) > 2.0


def test_a_repeated_request_has_the_same_answer_and_no_further_cost(private: Callable[..., Private]) -> None:
    site = private({"epsilon": 50.0}, NOISE)
    first, second = site.ask("run-a"), site.ask("run-a")
    assert isinstance(first, RoundReply)
    assert isinstance(second, RoundReply)
    assert (first.payload == second.payload).all()
    assert len(read_budget(site.budget)) == 1


def test_with_a_budget_nothing_is_trained_or_reported_without_noise(private: Callable[..., Private]) -> None:
    site = private({"epsilon": 50.0}, NOISE)
    plain = site.proposal.training.model_copy(update={"privacy": None})
    for changes in ({"settings": plain}, {"phase": "evaluate", "settings": None}, {"wants_gradient": True}):
        answer = site.ask("run-a", **changes)
        assert isinstance(answer, Refusal), changes
        assert "outgoing.budget" in answer.reason
    assert isinstance(site.ask("run-a", phase="evaluate", settings=None, split="validation"), RoundReply)
    assert not site.budget.exists()


def test_with_a_budget_a_run_without_noise_is_refused_as_a_whole(private: Callable[..., Private]) -> None:
    answer = private({"epsilon": 50.0}).ask("run-a")
    assert isinstance(answer, Refusal)
    assert answer.reason == "the site's gate refuses it: outgoing.budget"


OTHER_SPLITS: tuple[dict[str, object], ...] = (
    {"seed": 7},
    {"split_seed": 7},
    {"test_fraction": 0.3},
    {"validation_fraction": 0.3},
)


@pytest.mark.parametrize("changes", OTHER_SPLITS, ids=lambda changes: next(iter(changes)))
@pytest.mark.parametrize("restart", [False, True])
def test_with_a_budget_no_run_may_test_on_images_that_another_trained_on(
    private: Callable[..., Private], changes: dict[str, object], restart: bool
) -> None:
    site = private({"epsilon": 50.0}, NOISE)
    assert isinstance(site.ask("run-a"), RoundReply)
    if restart:
        site.restart()
    agreed = site.proposal
    site.proposal = agreed.model_copy(update={"data": agreed.data.model_copy(update=changes)})
    answer = refused_proposal(site, "run-b")
    assert answer == "the site's gate refuses it: outgoing.budget"
    for number, same in enumerate(({"seed": agreed.seed}, {"seed": 7, "split_seed": agreed.seed})):
        site.proposal = agreed.model_copy(update={"seed": 7, "data": agreed.data.model_copy(update=same)})
        site.gate.admit_proposal(f"run-b{number}", site.proposal, b"frame")
    site.restart(budget=None)
    site.proposal = agreed.model_copy(update={"seed": 8})
    site.gate.admit_proposal("run-c", site.proposal, b"frame")


def test_the_order_of_classes_belongs_to_the_splits_of_images_with_several(private: Callable[..., Private]) -> None:
    agreed = private(None).proposal
    data = agreed.data
    for task in ("single_label", "multi_label"):
        told = set()
        for classes in (data.classes, data.classes[::-1]):
            changed = data.model_copy(update={"task": task, "classes": classes})
            told.add(splits_of(agreed.model_copy(update={"data": changed})))
        assert len(told) == (1 if task == "single_label" else 2)


def test_a_proposal_that_was_never_trained_pins_no_splits(private: Callable[..., Private]) -> None:
    site = private({"epsilon": 50.0}, NOISE)
    agreed = site.proposal
    site.gate.admit_proposal("run-x", agreed.model_copy(update={"seed": 7}), b"frame")
    assert isinstance(site.ask("run-a"), RoundReply)


def test_a_run_agreed_on_before_the_budget_pins_its_splits_when_it_continues(private: Callable[..., Private]) -> None:
    site = private(None, NOISE)
    assert isinstance(site.ask("run-a"), RoundReply)
    site.restart(budget={"epsilon": 50.0})
    site.gate.admit_proposal("run-x", site.proposal.model_copy(update={"seed": 7}), b"frame")
    assert isinstance(site.ask("run-a", 2), RoundReply)
    site.proposal = site.proposal.model_copy(update={"seed": 7})
    assert refused_proposal(site, "run-b") == "the site's gate refuses it: outgoing.budget"


def test_without_a_budget_the_cost_is_still_recorded(private: Callable[..., Private]) -> None:
    site = private(None, NOISE)
    assert isinstance(site.ask("run-a"), RoundReply)
    assert len(read_budget(site.budget)) == 1


def test_neither_epsilon_nor_delta_nor_the_loss_is_in_the_reply(private: Callable[..., Private]) -> None:
    reply = private({"epsilon": 50.0}, NOISE).ask("run-a")
    assert isinstance(reply, RoundReply)
    assert reply.metrics["loss"] != reply.metrics["loss"]
    assert not {name for name in reply.metrics if "epsilon" in name or "delta" in name}


def test_a_round_with_a_line_lost_to_a_power_cut_is_spent_and_noted_in_the_ledger(
    private: Callable[..., Private],
) -> None:
    site = private({"epsilon": 50.0}, NOISE)
    assert isinstance(site.ask("run-a"), RoundReply)
    first = len(site.budget.read_bytes())
    site.restart()
    assert isinstance(site.ask("run-b", 2), RoundReply)
    whole = site.budget.read_bytes()
    site.gate.close()
    site.budget.write_bytes(whole[: first + 99] + bytes(20))
    check_gate(site.settings, site.kit)
    assert site.budget.read_bytes() != whole
    site.restart()
    assert site.budget.read_bytes() == whole
    assert isinstance(site.ask("run-b", 3), RoundReply)
    assert len(read_budget(site.budget)) == 3
    (noted,) = show_ledger(site.budget.with_name("ledger.jsonl"), kind="recovered")
    assert (noted["run"], noted["round"]) == ("run-b", 2)
    said = verify_ledger(site.budget.with_name("ledger.jsonl"))["sentences"]
    assert any("interrupted 1 time during a write" in sentence for sentence in said)


@pytest.mark.parametrize("left", ["nothing", "an older end"])
def test_the_ledger_reveals_a_budget_that_was_removed_with_its_tip(private: Callable[..., Private], left: str) -> None:
    site = private({"epsilon": 50.0}, NOISE)
    files = site.budget, site.budget.with_suffix(".tip")
    assert isinstance(site.ask("run-a"), RoundReply)
    kept = [file.read_bytes() for file in files]
    assert isinstance(site.ask("run-a", 2), RoundReply)
    site.restart()
    site.gate.close()
    whole = [file.read_bytes() for file in files]
    for file, content in zip(files, kept, strict=True):
        file.unlink()
        if left == "an older end":
            file.write_bytes(content)
    for look in (open_gate, check_gate):
        with pytest.raises(InputRefusedError, match=r"outgoing\.budget.*lacks line 2, which the ledger names"):
            look(site.settings, site.kit)
    ledger = site.budget.with_name("ledger.jsonl")
    shown = show_ledger(ledger, kind="charged")
    assert [(entry["run"], entry["round"]) for entry in shown] == [("run-a", 1), ("run-a", 2)]
    for file, content in zip(files, whole, strict=True):
        file.write_bytes(content)
    site.restart()
    assert not show_ledger(ledger, kind="recovered")


def tear_line(site: Private) -> None:
    """Simulate a power cut while the budget's line is written, and so before the ledger's note."""
    take_back_note(site)
    site.budget.write_bytes(site.budget.read_bytes()[:99])


def take_back_note(site: Private) -> None:
    """Simulate a kill between the budget's line and the ledger's note."""
    ledger = site.budget.with_name("ledger.jsonl")
    ledger.write_bytes(site.before[0])
    tip_path(ledger).write_bytes(site.before[1])


def begin_anew(site: Private) -> None:
    """Remove the ledger and begin a new one."""
    ledger = site.budget.with_name("ledger.jsonl")
    for file in (ledger, tip_path(ledger)):
        file.unlink()
    begin_ledger(site.kit, "the disk failed")


@pytest.mark.parametrize("happened", [tear_line, take_back_note, begin_anew])
def test_a_removed_budget_is_detected_after_any_interruption_before_the_ledgers_note(
    private: Callable[..., Private], happened: Callable[[Private], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = private({"epsilon": 50.0}, NOISE)
    ledger, charge = site.budget.with_name("ledger.jsonl"), BudgetLedger.charge

    def remember(*given: Any, **named: Any) -> Charged:
        site.before = ledger.read_bytes(), tip_path(ledger).read_bytes()
        return charge(*given, **named)

    monkeypatch.setattr(BudgetLedger, "charge", remember)
    assert isinstance(site.ask("run-a"), RoundReply)
    site.gate.close()
    happened(site)
    site.restart()
    length = len(ledger.read_bytes())
    site.restart()
    assert len(ledger.read_bytes()) == length
    site.gate.close()
    assert len(read_budget(site.budget)) == 1
    for file in (site.budget, site.budget.with_suffix(".tip")):
        file.unlink()
    for look in (open_gate, check_gate):
        with pytest.raises(InputRefusedError, match=r"outgoing\.budget.*lacks line 1, which the ledger names"):
            look(site.settings, site.kit)


def test_a_gate_does_not_open_with_a_damaged_budget(private: Callable[..., Private]) -> None:
    site = private({"epsilon": 50.0}, NOISE)
    assert isinstance(site.ask("run-a"), RoundReply)
    site.budget.write_bytes(site.budget.read_bytes().replace(b'"steps":', b'"steps":1'))
    answer = site.ask("run-a", 2)
    assert isinstance(answer, Refusal)
    assert "outgoing.budget" in answer.reason
    site.gate.close()
    for look in (open_gate, check_gate):
        with pytest.raises(InputRefusedError, match=r"outgoing\.budget"):
            look(site.settings, site.kit)
