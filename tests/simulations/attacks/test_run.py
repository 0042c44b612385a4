"""The self-attack: replayed updates equal those that were sent, and its results and refusals are correct."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import simulations.attacks.inversion
from client.gate.policy import Policy
from client.site.site import Charge, Site
from ept_fed.cli.main import app
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.models.prompted_vit import PromptedViT
from ept_fed.privacy.attacks.views import View
from ept_fed.progress import Silent
from ept_fed.protocol.messages import RoundReply, RoundRequest
from ept_fed.reports.run.read_run import read_run
from simulations.attacks.controls import control_inversion, control_membership
from simulations.attacks.crafted_prompts import ask_gate, craft_prompts, shorten_step
from simulations.attacks.inversion import choose_targets
from simulations.attacks.membership import choose_candidates
from simulations.attacks.record import PARTS
from simulations.attacks.replay import Replay, check_replayable
from simulations.attacks.run import attack_run
from simulations.engine.reopen_run import reopen_run
from simulations.engine.simulate import simulate
from simulations.engine.virtual_sites import prepare_federation
from tests.conftest import MICRO_RUN, leave_charts_out

Sent = dict[tuple[str, int], np.ndarray]


@pytest.fixture(scope="module")
def finished(shared_micro: Callable[..., Experiment], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sent]:
    """Return a micro run, and the payload that each site sent in each round."""
    folder = tmp_path_factory.mktemp("attacked")
    experiment = shared_micro(*MICRO_RUN, "data.phantom_sites=2", "evaluation.baselines=[]")
    sent: Sent = {}
    train = Site.train

    def spy(site: Site, request: RoundRequest, *, charge: Charge) -> RoundReply:
        reply = train(site, request, charge=charge)
        assert reply.payload is not None
        sent[site.name, request.header.round] = reply.payload
        return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Site, "train", spy)
        leave_charts_out(patch)
        simulate(experiment, folder / "run", Silent())
    return folder / "run", sent


@pytest.fixture
def run(finished: tuple[Path, Sent], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


@pytest.fixture
def two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulations.attacks.inversion, "BATCHES", ((1, 2), (2, 1)))


def quiet(_what: str, _share: float) -> None:
    pass


def test_a_replayed_update_is_the_one_that_was_sent_bit_for_bit(finished: tuple[Path, Sent]) -> None:
    folder, sent = finished
    result = read_run(folder)
    federation = reopen_run(result)
    for site in federation.data.sites:
        replay = Replay(federation, result, site)
        for number in (1, 2):
            played = replay.play(number)
            assert played.payload.tobytes() == sent[site, number].tobytes()
            assert played.difference == 0
            # Playing crafted prompts in between must not change the site's own round.
            crafted = replay.play(number, craft_prompts(played.payload, federation.plan().layout))
            assert crafted.payload.tobytes() != played.payload.tobytes()
            assert replay.play(number).payload.tobytes() == sent[site, number].tobytes()


def test_the_gate_refuses_crafted_prompts_and_admits_the_shortened_step(finished: tuple[Path, Sent]) -> None:
    folder, _ = finished
    plan = reopen_run(read_run(folder)).plan()
    crafted = craft_prompts(plan.initial, plan.layout)
    tensors = plan.layout.unflatten(crafted)
    assert (tensors["sinks"][:, 0] < 0).all()
    assert (tensors["sinks"][:, 1:] > 0).all()
    refused = ask_gate(Policy(), plan.initial, crafted, plan.layout, 1)
    assert refused is not None
    assert "incoming.prompt_change" in refused
    within = shorten_step(plan.initial, crafted, plan.layout, 1.0)
    assert within.dtype == np.float32
    assert ask_gate(Policy(), plan.initial, within, plan.layout, 1) is None
    farther = shorten_step(plan.initial, crafted, plan.layout, 1.01)
    assert ask_gate(Policy(), plan.initial, farther, plan.layout, 1) is not None


@pytest.mark.integration
@pytest.mark.usefixtures("two_images")
def test_what_was_measured_is_written_with_its_assumptions_and_without_images(run: Path) -> None:
    shares: list[float] = []
    report = attack_run(run, lambda _what, share: shares.append(share), rounds=(1, 2), steps=1)
    written = json.loads((run / "attack.json").read_text())
    assert written["schema"] == 1
    assert set(written["assumptions"]) == {*PARTS, "all"}
    assert {row["part"] for row in written["rows"]} == set(PARTS)
    assert all(0 <= row["value"] <= 1 for row in written["rows"] if row["measure"].startswith("AUC"))
    sent = {row["payload"] for row in written["rows"] if row["sent"]}
    assert sent == {"sinks + tokens"}
    with (run / "attack.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(report["rows"])
    assert not list(run.glob("attack*.png"))
    assert "incoming.prompt_change" in written["gate"][0]["refused"]
    assert written["gate"][0]["refused_within"] is None
    assert {entry["difference"] for entry in written["replayed"]} == {0.0}
    assert shares == sorted(shares)
    # Raw prompts and their folds are the same function, so the loss decreases by the same amount.
    drops = {
        row["payload"]: row["value"]
        for row in written["rows"]
        if row["part"] == "membership" and row["round"] == 1 and row["measure"] == "AUC, loss drop"
    }
    assert drops["raw prompts"] == pytest.approx(drops["sinks"], abs=0.02)


@pytest.mark.integration
@pytest.mark.usefixtures("two_images")
def test_each_attack_succeeds_where_it_must(finished: tuple[Path, Sent]) -> None:
    result = read_run(finished[0])
    federation = reopen_run(result)
    site = next(iter(federation.data.sites))
    played = Replay(federation, result, site).play(1)
    model = dataclasses.replace(federation).slot.model
    assert isinstance(model, PromptedViT)
    candidates, view = choose_candidates(federation, site, 0), View("sinks", ("sinks",))
    known = {row.measure: row for row in control_membership(model, played, candidates, view, seed=0)}
    assert known["AUC, loss drop"].low > 0.5
    # Ten members are one batch, which is too few for an interval that excludes 0.5.
    assert known["AUC, cosine"].value > 0.55
    target = choose_targets(federation.data.sites[site], 0)[0]
    rows = control_inversion(model, played, target, federation.backbone.input, steps=60, seed=0)
    gains = {row.payload.split(",")[0]: row.gain for row in rows if row.measure == "PSNR" and "steps" in row.payload}
    assert gains["a linear model of the pixels"] > 1
    solved = {row.measure: row.value for row in rows if row.payload.endswith("solved")}
    assert solved["PSNR"] > 60
    assert solved["SSIM"] > 0.999


@pytest.mark.integration
@pytest.mark.usefixtures("two_images")
def test_the_command_prints_tables_and_asks_before_it_draws(run: Path) -> None:
    done = CliRunner().invoke(app, ["audit", "attack", str(run), "--rounds", "1", "--steps", "1", "--images"])
    assert done.exit_code == 0, done.output
    for words in (
        "0.5 is guessing",
        "Do these scores work?",
        "Does this search work?",
        "bit for bit",
        "Assumed (inversion)",
        "the gate refuses them",
    ):
        assert words in " ".join(done.output.split())
    assert len(list(run.glob("attack-*.png"))) == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--rounds", "9"], "the run has rounds 1 to 2"),
        (["--rounds", "one"], "write numbers"),
        (["--sites", "elsewhere"], "the run has no such site"),
        (["--policy", "none.yaml"], "is not a file"),
    ],
)
def test_what_cannot_be_attacked_is_refused(run: Path, words: list[str], text: str) -> None:
    done = CliRunner().invoke(app, ["audit", "attack", str(run), *words])
    assert done.exit_code == 2
    assert text in done.output
    assert not (run / "attack.json").exists()


def test_no_run_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["audit", "attack", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "is not a folder" in done.output


def test_prompts_of_another_round_are_refused(run: Path) -> None:
    shutil.copy(run / "prompts" / "round-001.safetensors", run / "prompts" / "round-000.safetensors")
    with pytest.raises(InputRefusedError, match="its round differ"):
        attack_run(run, quiet)


def test_a_site_that_trains_to_something_else_is_refused(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for entry in lines[0]["sites"].values():
        entry["train"]["loss"] *= 1.5
    (run / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputRefusedError, match="another model or other images"):
        attack_run(run, quiet)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["model.method=linear", "federation.share=prompts+head", "federation.payload=raw"], "model.method"),
        (["federation.strategy=feddyn", "federation.weights=uniform"], "federation.strategy"),
        (["federation.site_privacy={noise: local, clip: 1, noise_multiplier: 1}"], "federation.site_privacy"),
    ],
)
def test_runs_whose_updates_cannot_be_computed_again_are_named(
    micro: Callable[..., Experiment], overrides: list[str], field: str
) -> None:
    problems = check_replayable(prepare_federation(micro(*overrides)))
    assert [problem.field for problem in problems] == [field]
