"""A simulation behind a policy: it refuses what a deployment with that policy would refuse, and leaves the ledgers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

from client.audit.report import show_ledger, verify_ledger
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.progress import Silent
from simulations.engine.simulate import simulate
from simulations.engine.virtual_gates import introduce_sites, open_gates
from simulations.engine.virtual_sites import prepare_federation

SITES = ("site-1", "site-2", "site-3")
RUN = ("model.tokens=1", "evaluation.baselines=[]")


def write_policy(folder: Path, **outgoing: Any) -> Path:
    path = folder / "policy.yaml"
    limits = {"min_images": 2, "min_training_images": 2, **outgoing}
    path.write_text(yaml.safe_dump({"schema": 1, "outgoing": limits, "incoming": {"backbone": "first"}}))
    return path


def ledger(run: Path, site: str) -> Path:
    return run / "gates" / site / "ledger.jsonl"


def test_a_policy_that_allows_the_run_changes_no_prompt_and_each_site_has_a_sound_ledger(
    micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = micro(*RUN)
    plain = simulate(experiment, tmp_path / "plain", Silent())
    gated = simulate(experiment, tmp_path / "gated", Silent(), policy=write_policy(tmp_path))
    assert (plain["status"], gated["status"]) == ("done", "done")
    one, other = (load_file(tmp_path / name / "prompts" / "round-002.safetensors") for name in ("plain", "gated"))
    assert {name: values.tobytes() for name, values in one.items()} == {
        name: values.tobytes() for name, values in other.items()
    }
    for site in SITES:
        assert verify_ledger(ledger(tmp_path / "gated", site), every_signature=True)["status"] == "sound"
        kinds = [(entry["direction"], entry["kind"]) for entry in show_ledger(ledger(tmp_path / "gated", site))]
        trained = [("in", "train"), ("out", "train")]
        assert kinds[:3] == [("site", "opened"), ("in", "introduce"), ("out", "introduction")]
        assert kinds[3:] == [*trained, *trained, ("in", "evaluate"), ("out", "evaluate")]


def test_secure_aggregation_passes_the_gates_too(micro: Callable[..., Experiment], tmp_path: Path) -> None:
    masked = "federation={rounds: 1, norm_bound: null, secure_aggregation: {}}"
    policy = write_policy(tmp_path, secure_aggregation_only=True)
    report = simulate(micro(*RUN, masked), tmp_path / "run", Silent(), policy=policy)
    assert report["status"] == "done"
    left = [entry["kind"] for entry in show_ledger(ledger(tmp_path / "run", "site-1"), direction="out")]
    assert left == [
        "introduction",
        "train",
        "advertisement",
        "shares",
        "masked input",
        "confirmation",
        "unmasking",
        "evaluate",
    ]


def test_a_twin_of_a_masked_run_with_one_site_fewer_is_refused_by_every_gate(
    micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    masked = "federation={rounds: 1, norm_bound: null, secure_aggregation: {}}"
    four = micro(*RUN, masked, "data.phantom_sites=4")
    policy = write_policy(tmp_path)
    assert simulate(four, tmp_path / "run", Silent(), policy=policy)["status"] == "done"
    federation = prepare_federation(micro(*RUN, masked, "data.phantom_sites=4", "data.sites=[site-1, site-2, site-3]"))
    sites = {name: federation.create_site(data) for name, data in federation.data.sites.items()}
    with open_gates(policy, sites, tmp_path / "run" / "gates") as gates:
        refused = introduce_sites(federation.experiment.run_id, federation.proposal, sites, gates)
        assert refused == dict.fromkeys(SITES, "the site's gate refuses it: protocol.run")
        other = federation.proposal.model_copy(update={"seed": 1})
        assert introduce_sites("another", other, sites, gates) == {}


def test_a_policy_that_forbids_the_head_ends_the_run_before_the_first_round(
    micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = micro(*RUN, "federation.share=prompts+head")
    report = simulate(experiment, tmp_path / "run", Silent(), policy=write_policy(tmp_path))
    assert report["status"] == "failed"
    assert report["ended"] == "3 of 3 sites refuse the run"
    assert sorted(report["notes"])[-3:] == [
        f"{site} refuses the run: the site's gate refuses it: incoming.share" for site in SITES
    ]
    for site in SITES:
        (refusal,) = show_ledger(ledger(tmp_path / "run", site), decision="refused")
        assert refusal["rule"] == "incoming.share"
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


def test_the_run_goes_on_without_a_site_whose_policy_refuses_it(
    micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    uneven = ("data.shots=null", "data.phantom_sites=1", "data.partition={kind: dirichlet, sites: 3, alpha: 5.0}")
    experiment = micro(*RUN, *uneven, "data.patients_per_class=16", "federation.rounds=1")
    images = {name: len(site.train) for name, site in prepare_federation(experiment).data.sites.items()}
    smallest = min(images, key=images.__getitem__)
    policy = write_policy(tmp_path, min_training_images=images[smallest] + 1)
    report = simulate(experiment, tmp_path / "run", Silent(), policy=policy)
    assert report["status"] == "done"
    refusal = f"{smallest} refuses the run: the site's gate refuses it: outgoing.min_training_images"
    assert refusal in report["notes"]
    (line,) = (json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines())
    assert (sorted(line["aggregated"]), line["refused"]) == (sorted(images.keys() - {smallest}), [])


def test_a_run_is_continued_with_its_gates_and_only_with_its_policy(
    micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment, out, policy = micro(*RUN), tmp_path / "run", write_policy(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        simulate(experiment, out, StopInSecondRound(), policy=policy)
    before = len(show_ledger(ledger(out, "site-1")))
    other = tmp_path / "other.yaml"
    other.write_text("schema: 1\n")
    for wrong in (None, other):
        with pytest.raises(InputRefusedError, match="--policy"):
            simulate(experiment, out, Silent(), resume=True, policy=wrong)
    assert simulate(experiment, out, Silent(), resume=True, policy=policy)["status"] == "done"
    assert len(show_ledger(ledger(out, "site-1"))) > before
    assert verify_ledger(ledger(out, "site-1"), every_signature=True)["status"] == "sound"


def test_a_run_without_a_site_is_continued_without_it(micro: Callable[..., Experiment], tmp_path: Path) -> None:
    uneven = ("data.shots=null", "data.phantom_sites=1", "data.partition={kind: dirichlet, sites: 3, alpha: 5.0}")
    experiment, out = micro(*RUN, *uneven, "data.patients_per_class=16"), tmp_path / "run"
    images = {name: len(site.train) for name, site in prepare_federation(experiment).data.sites.items()}
    policy = write_policy(tmp_path, min_training_images=min(images.values()) + 1)
    with pytest.raises(KeyboardInterrupt):
        simulate(experiment, out, StopInSecondRound(), policy=policy)
    assert simulate(experiment, out, Silent(), resume=True, policy=policy)["status"] == "done"
    whole = tmp_path / "whole"
    simulate(experiment, whole, Silent(), policy=policy)
    assert (out / "prompts/round-002.safetensors").read_bytes() == (
        whole / "prompts/round-002.safetensors"
    ).read_bytes()


class StopInSecondRound(Silent):
    """Ends the process, as it were, before the second round is saved."""

    def on_round(self, round_number: int, seconds: float) -> None:
        if round_number == 2:
            raise KeyboardInterrupt


def test_noise_is_charged_to_every_sites_budget(micro: Callable[..., Experiment], tmp_path: Path) -> None:
    private = ("training.privacy={clip: 1.0, noise_multiplier: 4.0}", "training.epochs=1")
    policy = write_policy(tmp_path, budget={"epsilon": 100.0, "delta": 1e-5})
    assert simulate(micro(*RUN, *private), tmp_path / "run", Silent(), policy=policy)["status"] == "done"
    for site in SITES:
        charged = (tmp_path / "run" / "gates" / site / "budget.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in charged] == [1, 2]


def test_a_policy_that_cannot_be_read_is_refused_before_the_folder_exists(
    micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text("schema: 1\noutgoing: {heads: true}\n")
    with pytest.raises(InputRefusedError, match=r"outgoing\.heads"):
        simulate(micro(*RUN), tmp_path / "run", Silent(), policy=tmp_path / "policy.yaml")
    assert not (tmp_path / "run").exists()
