"""A whole simulation in one process, from the settings to the report, on phantoms and a micro ViT."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.models import digest_tensors, frozen_tensors
from ept_fed.progress import Silent
from ept_fed.validation.load_experiment import load_experiment
from simulations.engine import simulate as simulate_module
from simulations.engine.simulate import simulate
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation
from tests.conftest import MICRO_RUN

Micro = Callable[..., Experiment]
# One round of two sites and no baselines, for what does not depend on more.
SMALL = ("data.phantom_sites=2", "evaluation.baselines=[]", "federation.rounds=1")


class Watcher(Silent):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.rounds: list[tuple[str, int]] = []
        self.losses: list[float] = []

    def on_stage(self, stage: str, sites: tuple[str, ...], rounds: int) -> None:
        self.stages.append(stage)

    def on_site(self, round_number: int, site: str, numbers: Mapping[str, float]) -> None:
        self.losses += [numbers["loss"]] if "loss" in numbers else []

    def on_round(self, round_number: int, seconds: float) -> None:
        self.rounds.append((self.stages[-1], round_number))


@pytest.mark.integration
@pytest.mark.usefixtures("drawn")
def test_a_run_leaves_everything_it_promises(micro: Micro, tmp_path: Path) -> None:
    out, watcher = tmp_path / "run", Watcher()
    experiment = micro("model.tokens=1", "evaluation.baselines=[local, centralised]")
    report = simulate(experiment, out, watcher)
    assert report["status"] == "done"
    assert watcher.stages == ["federated", "local", "centralised"]
    assert watcher.rounds == [(stage, number) for stage in watcher.stages for number in (1, 2)]
    assert load_experiment(out / "config.yaml") == experiment
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    assert all(line["aggregated"] == ["site-1", "site-2", "site-3"] and not line["refused"] for line in lines)
    partition = (out / "partition.csv").read_text().splitlines()
    assert partition[0] == "site,split,class,images,groups"
    assert sum(int(line.split(",")[3]) for line in partition[1:]) == 3 * 5 * 8 * 2
    assert (out / "partition.png").read_bytes().startswith(b"\x89PNG")
    prompts = sorted(path.name for path in (out / "prompts").iterdir())
    assert prompts == ["round-000.safetensors", "round-001.safetensors", "round-002.safetensors"]
    written = json.loads((out / "report.json").read_text())
    assert written["settings"] == ["local", "federated", "centralised"]
    for setting in written["settings"]:
        assert set(written["test"][setting]) == {"site-1", "site-2", "site-3"}
    rows = (out / "sites" / "site-2" / "predictions.csv").read_text().splitlines()
    images = {(row["split"], row["site"]): 0 for row in written["data"]}
    for row in written["data"]:
        images[row["split"], row["site"]] += row["images"]
    assert len(rows) == 1 + 3 * (images["test", "site-2"] + images["validation", "site-2"])
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    with safe_open(out / "sites" / "site-1" / "model.safetensors", "numpy") as file:
        about = json.loads(file.metadata()["ept_fed"])
        assert set(file.keys()) == {"sinks", "tokens", "head.weight", "head.bias"}
    assert about["backbone"]["digest"] == report["backbone"]["digest"]
    assert about["temperature"] > 0
    page = (out / "sites" / "site-1" / "report.html").read_text()
    assert "Most confident errors" in page
    assert "attention kept:" in page


@pytest.mark.integration
def test_equal_seeds_give_equal_prompts_byte_for_byte_and_other_seeds_do_not(micro: Micro, tmp_path: Path) -> None:
    last = "prompts/round-001.safetensors"
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        simulate(micro(*SMALL, "model.tokens=1", f"seed={seed}"), tmp_path / name, Silent())
    first, again, other = ((tmp_path / name / last).read_bytes() for name in "abc")
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ((), {"sinks"}),
        (("model.tokens=2",), {"sinks", "tokens"}),
        (("federation.share=prompts+head",), {"sinks", "head.weight", "head.bias"}),
        (("federation.payload=raw",), {"prompts"}),
        (("federation.payload=raw", "model.embedding=multiply_concat"), {"prompts"}),
    ],
    ids=["default", "tokens", "head", "raw", "multiply_concat"],
)
def test_nothing_travels_but_what_was_asked_for(
    micro: Micro, tmp_path: Path, settings: tuple[str, ...], names: set[str]
) -> None:
    out = tmp_path / "run"
    report = simulate(micro(*SMALL, *settings), out, Silent())
    tensors = load_file(out / "prompts" / "round-001.safetensors")
    assert set(tensors) == names
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())
    payload = sum(tensor.nbytes for tensor in tensors.values())
    assert report["payload"]["bytes"] == payload
    for traffic in report["traffic"].values():
        assert payload < traffic["largest_update"] <= payload + 2000


def test_the_payload_is_four_bytes_per_layer_and_token(micro_run: Path, micro: Micro) -> None:
    federation = prepare_federation(micro(*MICRO_RUN))
    L, N, D, T = (
        len(federation.backbone.vit.blocks),
        federation.backbone.num_tokens,
        federation.backbone.vit.embed_dim,
        1,
    )
    report = json.loads((micro_run / "report.json").read_text())
    assert report["payload"]["bytes"] == 4 * L * N + 4 * L * T * (D + 1)


def test_round_files_say_what_they_belong_to(micro_run: Path) -> None:
    report = json.loads((micro_run / "report.json").read_text())
    with safe_open(micro_run / "prompts" / "round-001.safetensors", "numpy") as file:
        about = json.loads(file.metadata()["ept_fed"])
    assert about == {
        "schema": 1,
        "run": report["run"],
        "round": 1,
        "backbone_digest": report["backbone"]["digest"],
        "layout_hash": report["payload"]["hash"],
    }


def test_the_federations_first_round_is_the_sites_own_first_round_averaged(
    micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare FedAvg by sample count with its definition, computed from sites that the test trains directly."""

    def prepare_unequal(experiment: Experiment, **options: Path | None) -> VirtualFederation:
        federation = prepare_federation(experiment, **options)
        train = federation.data.sites["site-2"].train
        train.records, train.labels, train._images = train.records[:4], train.labels[:4], train._images[:4]
        return federation

    monkeypatch.setattr(simulate_module, "prepare_federation", prepare_unequal)
    experiment = micro(*SMALL, "model.tokens=1")
    federation = prepare_unequal(experiment)
    payloads, counts = [], []
    for data in federation.data.sites.values():
        site = federation.create_site(data)
        site.fit(experiment.training, 1, 1)
        payloads.append(site.own_payload().astype(np.float64))
        counts.append(len(data.train))
    assert counts == [10, 4]
    simulate(experiment, tmp_path / "run", Silent())
    tensors = load_file(tmp_path / "run" / "prompts" / "round-001.safetensors")
    have = np.concatenate([tensors["sinks"].ravel(), tensors["tokens"].ravel()])
    np.testing.assert_allclose(have, np.average(payloads, axis=0, weights=counts), rtol=1e-5, atol=1e-6)


def test_local_heads_stay_apart_and_a_shared_head_does_not(micro: Micro) -> None:
    for share, equal in (("prompts", False), ("prompts+head", True)):
        experiment = micro(f"federation.share={share}")
        federation = prepare_federation(experiment)
        plan = federation.plan()
        sites = [federation.create_site(data) for data in federation.data.sites.values()]
        for site in sites:
            site.fit(experiment.training, 1, 1)
        heads = []
        for site in sites:
            with site.hold(plan.initial) as held:
                heads.append(held.model.head.weight.detach().clone())
        assert bool((heads[0] == heads[1]).all()) == equal


def test_all_virtual_sites_share_one_backbone_that_never_changes(micro: Micro) -> None:
    experiment = micro()
    federation = prepare_federation(experiment)
    sites = [federation.create_site(data) for data in federation.data.sites.values()]
    lent = set()
    for site in sites:
        with site.hold() as held:
            lent.add(id(held.model.vit))
    assert lent == {id(federation.backbone.vit)}
    before = digest_tensors(frozen_tensors(federation.backbone.vit))
    for site in sites:
        site.fit(experiment.training, 1, 1)
    assert digest_tensors(frozen_tensors(federation.backbone.vit)) == before


def test_refused_input_lists_model_and_data_together_and_leaves_no_folder(micro: Micro, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputRefusedError) as refusal:
        simulate(micro("model.image_size=60", "data.shots=500"), out, Silent())
    fields = [problem.field for problem in refusal.value.problems]
    assert "model.image_size" in fields
    assert fields.count("data.shots") > 1
    assert not out.exists()


def test_a_folder_in_use_is_refused_before_any_work(micro: Micro, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("keep me")
    with pytest.raises(InputRefusedError, match="name another folder"):
        simulate(micro(), out, Silent())
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_training_lowers_the_loss(micro: Micro, tmp_path: Path) -> None:
    watcher = Watcher()
    experiment = micro(*SMALL[:2], "federation.rounds=4", "training.head_lr=0.02", "data.shots=4")
    simulate(experiment, tmp_path / "run", watcher)
    assert np.mean(watcher.losses[-2:]) < np.mean(watcher.losses[:2])


def test_a_run_in_which_every_site_diverges_is_failed_and_says_why(micro: Micro, tmp_path: Path) -> None:
    out = tmp_path / "run"
    report = simulate(micro("training.head_lr=1e30", "training.epochs=3", "federation.rounds=1"), out, Silent())
    assert report["status"] == "failed"
    assert report["settings"] == []
    line = json.loads((out / "rounds.jsonl").read_text())
    trained = [refusal for refusal in line["refused"] if refusal["phase"] == "train"]
    assert line["outcome"].startswith("kept the old prompts: 0 sound replies")
    assert [refusal["site"] for refusal in trained] == ["site-1", "site-2", "site-3"]
    assert all("lower the learning rates" in refusal["reason"] for refusal in trained)
    initial, last = (load_file(out / "prompts" / f"round-00{number}.safetensors") for number in (0, 1))
    assert np.array_equal(initial["sinks"], last["sinks"])
    assert "declined a train message" in (out / "run.log").read_text()
