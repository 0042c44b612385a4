"""Tests of secure aggregation as hospitals would run it: certificates, gates, ledgers; the server sees no update."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.gate.open_gate import LEDGER_FILE, read_site_key
from client.gate.privacy_budget import BUDGET_FILE, read_budget
from client.ledger.ledger import tip_path
from client.ledger.verify import examine
from ept_fed.progress import Silent
from ept_fed.protocol.proposal import propose
from ept_fed.protocol.stage_messages import STAGES
from ept_fed.validation.load_experiment import load_experiment
from server.deployment.agreement import name_run
from simulations.engine.simulate import simulate
from tests.end_to_end.deployment.conftest import PLAINTEXT, Federated
from tests.masked_runs import train_as_masked
from tests.needs import NGINX

pytestmark = [pytest.mark.integration, NGINX.mark]


def test_the_prompts_equal_those_of_a_plaintext_run_except_for_the_noise(
    masked: Federated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_as_masked(monkeypatch, name_run(propose(load_experiment(masked.experiment), masked.rehearsal.names)))
    experiment = masked.rehearsal.write_experiment("plaintext", federation=PLAINTEXT)
    simulate(load_experiment(experiment), tmp_path / "plaintext", Silent())
    ours, plaintext = (
        load_file(run / "prompts/round-001.safetensors") for run in (masked.folder, tmp_path / "plaintext")
    )
    for tensor, values in plaintext.items():
        np.testing.assert_allclose(ours[tensor], values, rtol=0, atol=6 * 2e-4 / 3)
        assert np.abs(ours[tensor] - values).max() > 1e-5


def test_every_site_was_charged_for_its_share_of_the_noise(masked: Federated) -> None:
    for name in masked.rehearsal.names:
        charged = read_budget(masked.rehearsal.site_kit(name) / "state" / BUDGET_FILE)
        assert [line.mechanism for line in charged] == ["distributed gaussian"]


def test_every_site_is_in_the_sum_and_no_site_was_refused(masked: Federated) -> None:
    assert [line["aggregated"] for line in masked.rounds()] == [list(masked.rehearsal.names)]
    assert [line["refused"] for line in masked.rounds()] == [[]]


def test_the_ledgers_are_sound_and_show_only_masked_updates(masked: Federated) -> None:
    for name in masked.rehearsal.names:
        kit = masked.rehearsal.site_kit(name)
        path = kit / "state" / LEDGER_FILE
        key = read_site_key(kit).public_key()
        examined = examine(path.read_bytes(), tip_path(path).read_bytes(), key, every_signature=True)
        assert examined.sound
        sent = [e for e in examined.entries if e.direction == "out" and str(e.run).startswith(f"{masked.name}-")]
        assert [entry.kind for entry in sent if entry.round is not None] == ["train", *STAGES, "evaluate"]
        carrying = {entry.kind for entry in sent if entry.tensors}
        assert carrying == {"introduction", "masked input"}


def test_no_site_takes_part_in_a_twin_of_the_masked_run(masked: Federated) -> None:
    # One round more: without one of the sites, the difference of the two sums would be its update.
    federation = {**PLAINTEXT, "rounds": 2, "secure_aggregation": {}}
    code, said = masked.rehearsal.run(masked.rehearsal.write_experiment("twin", federation=federation))
    assert code != 0
    assert said.count("the site's gate refuses it: protocol.run") >= 3, said
