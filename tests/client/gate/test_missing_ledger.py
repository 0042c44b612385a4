"""Tests of the evidence in the site's state: it reveals a ledger that was removed, emptied or cut with its tip."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from client.audit import begin_ledger as begin_module
from client.audit.report import verify_ledger
from client.gate.missing_ledger import find_served, load_restart, serialize_served
from client.gate.open_gate import LEDGER_FILE, check_gate, open_gate
from client.gate.privacy_budget import BUDGET_FILE, BudgetLedger
from client.ledger.ledger import tip_path
from client.site.privacy_plan import RoundCost
from client.site.run_record import Answer
from client.site.run_registry import RunRegistry
from client.site.state_store import SiteState
from ept_fed.cli.main import app
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.privacy.dp.accountant import GaussianSteps
from ept_fed.protocol.frames import Introduce, encode_frame
from ept_fed.protocol.proposal import propose
from tests.client.gated_kit import COUNTS, LAYOUT, RUN, Kit, answer, introduction, request

ROUND = 1


@pytest.fixture
def kit(tmp_path: Path, federation: Callable[..., Experiment]) -> Iterator[Kit]:
    made = Kit(tmp_path, propose(federation()))
    document = {"site": "north", "data": {"source": "phantoms"}, "worker": {"state": "state", "socket": "worker.sock"}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(document))
    yield made
    made.close()


def serve(kit: Kit) -> None:
    """Pass one round through the gate."""
    gate = kit.open()
    kit.join(gate)
    asked = request(ROUND)
    kit.admit(gate, asked)
    gate.release(asked, answer(asked), LAYOUT)
    kit.close()


def registry(state: Path) -> RunRegistry:
    return RunRegistry(state, "north")


def keep_state(state: Path, round_number: int) -> None:
    registry(state).states(RUN).save(SiteState(round_number, round_number, {"model/x": np.zeros(1)}, "{}"))


def keep_budget(state: Path, round_number: int) -> None:
    ledger = BudgetLedger(state / BUDGET_FILE)
    cost = RoundCost("poisson-subsampled gaussian", GaussianSteps(2.0, 0.25, 4), clip=1.0, delta=1e-5)
    ledger.charge(RUN, round_number, cost, delta=1e-5, epsilon=None)


# Each one must be sufficient: an attacker who removes a ledger may remove some of the others.
WITNESSES: dict[str, Callable[[Kit, Path], object]] = {
    "an agreement": lambda kit, state: registry(state).agree(RUN, kit.proposal),
    "a state": lambda kit, state: keep_state(state, ROUND),
    "an answer": lambda kit, state: registry(state).record(RUN).note(Answer("train", 1, 1, ROUND)),
    "the gate's prompts": lambda kit, state: None,
    "the budget": lambda kit, state: keep_budget(state, ROUND),
}
GONE: dict[str, Callable[[Path], object]] = {
    "removed": lambda file: file.unlink(),
    "emptied": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(bytes(512)),
}


@pytest.mark.parametrize("gone", GONE)
@pytest.mark.parametrize("witness", WITNESSES)
def test_a_missing_ledger_is_refused_if_the_state_has_evidence_of_it(kit: Kit, witness: str, gone: str) -> None:
    serve(kit)
    path = kit.settings.worker.state / LEDGER_FILE
    if witness != "the gate's prompts":
        shutil.rmtree(path.parent / ".gate")
        (path.parent / RUN).mkdir()
    WITNESSES[witness](kit, path.parent)
    check_gate(kit.settings, kit.folder)
    for file in (path, tip_path(path)):
        GONE[gone](file)
    before = [file.exists() and file.read_bytes() for file in (path, tip_path(path))]
    for look in (open_gate, check_gate):
        with pytest.raises(InputRefusedError, match=f"the site's state contains {RUN}.*ept-fed audit begin"):
            look(kit.settings, kit.folder)
    assert [file.exists() and file.read_bytes() for file in (path, tip_path(path))] == before


def test_a_site_without_any_state_begins_its_first_ledger_by_itself(kit: Kit) -> None:
    check_gate(kit.settings, kit.folder)
    kit.open()
    assert [entry.kind for entry in kit.entries()] == ["opened"]


@pytest.mark.parametrize("keep", [keep_state, keep_budget])
def test_an_end_that_was_cut_together_with_its_tip_is_detected(kit: Kit, keep: Callable[[Path, int], None]) -> None:
    serve(kit)
    path = kit.settings.worker.state / LEDGER_FILE
    kept = path.read_bytes(), tip_path(path).read_bytes()
    gate = kit.open()
    asked = request(2)
    kit.admit(gate, asked)
    gate.release(asked, answer(asked), LAYOUT)
    keep(path.parent, 2)
    kit.open()
    kit.close()
    path.write_bytes(kept[0])
    tip_path(path).write_bytes(kept[1])
    assert verify_ledger(path)["status"] == "sound"
    for look in (open_gate, check_gate):
        with pytest.raises(InputRefusedError, match=f"ends before that: the site's state contains {RUN} to round 2"):
            look(kit.settings, kit.folder)
    assert path.read_bytes() == kept[0]


def begin(kit: Kit, reason: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["audit", "begin", str(kit.folder), "--reason", reason])
    return done.exit_code, " ".join(done.output.split())


def test_a_ledger_begun_by_a_person_records_this_permanently(kit: Kit) -> None:
    serve(kit)
    path = kit.settings.worker.state / LEDGER_FILE
    keep_state(path.parent, ROUND)
    code, said = begin(kit, "a whim")
    assert code == 2
    assert "already exists; keep it" in said
    for file in (path, tip_path(path)):
        file.unlink()
    assert begin(kit, " ")[0] == 2
    assert not path.exists()
    code, said = begin(kit, "the disk\nfailed")
    assert code == 0, said
    assert f"{RUN} to round {ROUND}" in said
    gate = kit.open()
    kit.join(gate)
    assert kit.is_sound()
    sentences = verify_ledger(path)["sentences"]
    assert any('because "the disk failed"' in one and f"{RUN} to round {ROUND}" in one for one in sentences)
    # Later rounds must still be in the new ledger.
    kit.close()
    keep_state(path.parent, ROUND + 1)
    with pytest.raises(InputRefusedError, match="ends before that"):
        open_gate(kit.settings, kit.folder)


def test_of_two_ledgers_begun_at_once_one_is_refused(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    find = begin_module.find_served

    def be_overtaken(*given: Any) -> dict[str, int]:
        monkeypatch.setattr(begin_module, "find_served", find)
        begin_module.begin_ledger(kit.folder, "the first")
        return find(*given)

    monkeypatch.setattr(begin_module, "find_served", be_overtaken)
    with pytest.raises(InputRefusedError, match="already exists; keep it"):
        begin_module.begin_ledger(kit.folder, "the second")
    assert [load_restart(entry)[0] for entry in kit.entries()] == ["the first"]


def test_a_run_may_have_the_name_of_a_state_file(kit: Kit) -> None:
    gate, name = kit.open(), "round-3"
    gate.admit_proposal(name, kit.proposal, encode_frame(Introduce(name, kit.proposal)))
    met = introduction(kit.proposal, run=name)
    gate.release_introduction(name, met, encode_frame(met), counts=COUNTS)
    assert (kit.settings.worker.state / ".gate" / f"{name}.safetensors").exists()
    registry(kit.settings.worker.state).agree(name, kit.proposal)
    assert find_served(kit.settings.worker.state, [], "north") == {name: 0}
    kit.open()
    kit.close()
    check_gate(kit.settings, kit.folder)


def test_the_last_round_of_every_run_is_found_among_other_files_in_the_state(tmp_path: Path) -> None:
    assert find_served(tmp_path / "none", [], "north") == {}
    for name in (
        "run-b/local/round-0009.safetensors",
        "run-b/round-x.safetensors",
        "prompts/note.txt",
        "run-c/x/y.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for round_number in (2, 10, 3):
        registry(tmp_path).record("run-b").note(Answer("evaluate", 1, 1, round_number))
    served = find_served(tmp_path, [], "north")
    assert served == {"run-b": 10}
    assert serialize_served(served) == "run-b to round 10"
