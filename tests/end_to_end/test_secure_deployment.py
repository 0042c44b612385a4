"""Tests of secure aggregation as hospitals would run it: certificates, gates, ledgers; the server sees no update."""

import json
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.gate.open_gate import LEDGER_FILE, read_site_key
from client.gate.privacy_budget import BUDGET_FILE, read_budget
from client.ledger.ledger import tip_path
from client.ledger.verify import examine
from ept_fed.progress import Silent
from ept_fed.protocol.stage_messages import STAGES
from ept_fed.validation.load_experiment import load_experiment
from simulations.deployment.loopback_deployment import Rehearsal
from simulations.engine.simulate import simulate

pytestmark = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin") is None,
    reason="nginx is not installed: apt install nginx-light",
)
NAME = "masked"
ROUNDS = 1
CLEAR = {"rounds": ROUNDS, "norm_bound": None, "weights": "uniform"}
# The noise is so small that it changes only the last digits: a share is just above the fixed-point resolution.
NOISE = {"noise": "distributed", "clip": 10.0, "noise_multiplier": 2e-5}


@pytest.fixture(scope="module")
def rehearsal() -> Iterator[Rehearsal]:
    with Rehearsal(3) as running:
        running.start_server()
        for name in running.names:
            running.start_site(name)
        experiment = running.write_experiment(
            NAME, federation={**CLEAR, "secure_aggregation": {}, "site_privacy": NOISE, "deadline": 60.0}
        )
        code, said = running.run(experiment)
        assert code == 0, said
        yield running


def test_the_prompts_equal_those_of_a_plaintext_run_except_for_the_noise(
    rehearsal: Rehearsal, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain = rehearsal.write_experiment(NAME, federation=CLEAR)
    folder = tmp_path_factory.mktemp("clear") / "run"
    simulate(load_experiment(plain), folder, Silent())
    for number in range(1, ROUNDS + 1):
        name = f"round-{number:03d}.safetensors"
        masked, clear = (load_file(path / "prompts" / name) for path in (rehearsal.server.runs / NAME, folder))
        for tensor, values in clear.items():
            np.testing.assert_allclose(masked[tensor], values, rtol=0, atol=6 * 2e-4 / 3)
            assert np.abs(masked[tensor] - values).max() > 1e-5


def test_every_site_was_charged_for_its_share_of_the_noise(rehearsal: Rehearsal) -> None:
    for name in rehearsal.names:
        charged = read_budget(rehearsal.site_kit(name) / "state" / BUDGET_FILE)
        assert [line.mechanism for line in charged] == ["distributed gaussian"] * ROUNDS


def test_every_site_is_in_every_sum_and_no_site_was_refused(rehearsal: Rehearsal) -> None:
    lines = (rehearsal.server.runs / NAME / "rounds.jsonl").read_text().splitlines()
    rounds = [json.loads(line) for line in lines]
    assert [line["aggregated"] for line in rounds] == [list(rehearsal.names)] * ROUNDS
    assert [line["refused"] for line in rounds] == [[]] * ROUNDS


def test_the_ledgers_are_sound_and_show_only_masked_updates(rehearsal: Rehearsal) -> None:
    for name in rehearsal.names:
        kit = rehearsal.site_kit(name)
        path = kit / "state" / LEDGER_FILE
        key = read_site_key(kit).public_key()
        examined = examine(path.read_bytes(), tip_path(path).read_bytes(), key, every_signature=True)
        assert examined.sound
        sent = [entry for entry in examined.entries if entry.direction == "out"]
        assert [entry.kind for entry in sent if entry.round is not None] == [
            *(kind for _ in range(ROUNDS) for kind in ("train", *STAGES)),
            "evaluate",
        ]
        carrying = {entry.kind for entry in sent if entry.tensors}
        assert carrying == {"introduction", "masked input"}
