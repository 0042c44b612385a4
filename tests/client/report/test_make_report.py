"""Tests of a site's own report: it has the simulation's numbers, is resumable and private, and names refused input."""

import csv
import dataclasses
import json
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.torch import save_file
from typer.testing import CliRunner

from client.report.make_report import _lock, report_site
from client.site.factory import load_backbone
from client.site.run_record import Answer, RunRecord
from client.site.site import Site
from client.worker.worker import Worker
from ept_fed.bundles.export import prepare_bundle
from ept_fed.cli.main import app
from ept_fed.config.experiment import Experiment
from ept_fed.data.sources.phantom_structures import STRUCTURES
from ept_fed.errors import InputRefusedError
from ept_fed.flower.records import encode_answer, read_frame_record
from ept_fed.progress import Silent
from ept_fed.protocol.frames import Introduce, decode_frame, encode_frame
from ept_fed.protocol.messages import Header, RoundRequest
from ept_fed.protocol.proposal import Proposal, SiteIntroduction, propose
from ept_fed.reports.run.read_run import read_run
from ept_fed.run_plan.plan import Plan
from ept_fed.validation.load_experiment import load_experiment
from ept_fed.validation.load_site import join_proposal, load_site_settings
from server.app import create_server_app
from simulations.benches.noop_sites import _Silent
from simulations.engine.local_grid import LocalGrid
from simulations.engine.simulate import simulate
from simulations.engine.virtual_sites import prepare_federation
from tests.client.listing_gate import ListingGate
from tests.conftest import MICRO

pytestmark = pytest.mark.integration

SITE = "site-1"
SITES = ("site-1", "site-2", "site-3")
PERSONAL = ("personalisation.fine_tune_epochs=1", "personalisation.interpolate=true", "personalisation.ditto=0.1")


def load(folder: Path, *overrides: str) -> Experiment:
    path = folder / "micro.yaml"
    path.write_text(yaml.safe_dump(MICRO))
    classes = f"data.classes=[{', '.join(STRUCTURES)}]"
    return load_experiment(path, [classes, "model.device=cpu", *overrides])


def make_kit(folder: Path, site: str) -> Path:
    kit = folder / site
    kit.mkdir(parents=True)
    data = {"source": "phantoms", "phantom_sites": 3, "patients_per_class": 8, "sites": [site]}
    (kit / "site.yaml").write_text(yaml.safe_dump({"site": site, "data": data, "model": {"device": "cpu"}}))
    return kit


def federate(experiment: Experiment, kits: Mapping[str, Path]) -> Plan:
    """Run the experiment over the kits' workers."""
    plan, proposal = prepare_federation(experiment).plan(), propose(experiment)
    behind = {}
    for site, kit in kits.items():
        worker = Worker(load_site_settings(kit / "site.yaml"), ListingGate())
        met = decode_frame(worker.answer(encode_frame(Introduce(plan.run, proposal))))
        assert isinstance(met, SiteIntroduction), met
        behind[site] = worker
    app = ClientApp()

    @app.train()
    @app.evaluate()
    def answer(message: Message, context: Context) -> Message:
        worker = behind[str(context.node_config["site"])]
        return encode_answer(worker.answer(read_frame_record(message)), message)

    server = create_server_app(plan, _Silent(), lambda _: None)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    server(LocalGrid(app, list(kits)), context)
    return plan


def predictions(folder: Path, settings: set[str]) -> list[dict[str, str]]:
    with (folder / "sites" / SITE / "predictions.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["setting"] in settings]


def snapshot(kit: Path, *left_out: str) -> dict[str, bytes]:
    found = {path.relative_to(kit).as_posix(): path for path in sorted(kit.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(left_out)}


@pytest.fixture(scope="module")
def taken_part(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """A kit after a federation of three workers, the run's name, and the folder of the same run in simulation."""
    folder = tmp_path_factory.mktemp("federation")
    experiment = load(folder, *PERSONAL, "data.test_shots=1")
    kits = {site: make_kit(folder / "kits", site) for site in SITES}
    plan = federate(experiment, kits)
    simulate(experiment, folder / "simulated", Silent())
    return kits[SITE], plan.run, folder / "simulated"


@pytest.fixture
def kit(taken_part: tuple[Path, str, Path], tmp_path: Path) -> Path:
    """A copy of the kit after the federation."""
    return Path(shutil.copytree(taken_part[0], tmp_path / "kit"))


@pytest.fixture(scope="module")
def reported(taken_part: tuple[Path, str, Path]) -> dict[str, Any]:
    """The report made in the original kit, after a check that the kit's other files are unchanged."""
    kit, run, _ = taken_part
    before = snapshot(kit)
    umask = os.umask(0)
    try:
        made = report_site(kit, Silent())
    finally:
        os.umask(umask)
    assert snapshot(kit, "reports/", f"state/{run}/local/") == before
    return made


def refused(kit: Path, **given: Any) -> str:
    with pytest.raises(InputRefusedError) as refusal:
        report_site(kit, Silent(), **given)
    return str(refusal.value)


def test_the_report_has_the_simulations_numbers_for_every_setting(
    taken_part: tuple[Path, str, Path], reported: dict[str, Any]
) -> None:
    _, run, simulated = taken_part
    folder = Path(reported["folder"])
    settings = {"local", "federated", "fine-tuned", "interpolated", "ditto"}
    ours = predictions(folder, settings)
    assert {row["setting"] for row in ours} == settings
    assert ours == predictions(simulated, settings)
    for name in ("statistics", "headline", "subgroups"):
        own, theirs = (
            json.loads((at / "sites" / SITE / "report.json").read_text())[name] for at in (folder, simulated)
        )
        assert own == theirs, name
    for at in (folder, simulated):
        limits = json.loads((at / "sites" / SITE / "report.json").read_text())["limits"]
        (thinned,) = (sentence for sentence in limits if "is tested on" in sentence)
        assert thinned.startswith(SITE)
    model = Path("sites") / SITE / "model.safetensors"
    assert (folder / model).read_bytes() == (simulated / model).read_bytes()
    assert (reported["run"], reported["round"], reported["rounds"]) == (run, 2, 2)


def test_rounds_and_traffic_are_those_that_the_worker_recorded(
    taken_part: tuple[Path, str, Path], reported: dict[str, Any]
) -> None:
    own, theirs = (
        json.loads((at / "sites" / SITE / "report.json").read_text())
        for at in (Path(reported["folder"]), taken_part[2])
    )
    curves = [[(r["round"], r["train_loss"], r["validation_auc"]) for r in doc["learning"]] for doc in (own, theirs)]
    assert curves[0] == curves[1]
    traffic = own["traffic"]
    assert (traffic["counted_by"], theirs["traffic"]["counted_by"]) == ("worker", "server")
    # The answers to the proposal, to two rounds, and to the final evaluation.
    assert traffic["messages_from_site"] == 4
    assert 4 * traffic["numbers_per_update"] < traffic["largest_update"] < 4 * traffic["numbers_per_update"] + 2000
    assert sum(row["bytes_from_site"] for row in own["learning"]) < traffic["bytes_from_site"]
    page = (Path(reported["folder"]) / "sites" / SITE / "report.html").read_text()
    assert "site's worker" in page
    assert "data:image/png;base64," in page
    assert "<strong>After round" not in page


def test_only_the_owner_may_read_the_report(reported: dict[str, Any]) -> None:
    folder = Path(reported["folder"])
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder, *folder.rglob("*"))}
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items()), modes
    local = folder.parents[1] / "state" / reported["run"] / "local"
    assert stat.S_IMODE(local.stat().st_mode) == 0o700
    assert [path.name for path in folder.parent.iterdir()] == [reported["run"]]
    assert all(Path(path).is_file() for path in reported["files"])


def test_a_bundle_can_be_made_from_the_report_folder(reported: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(reported["folder"])
    run = read_run(folder)
    assert tuple(run.sites) == (SITE,)
    bundle = prepare_bundle(folder, SITE, out=tmp_path / "bundle").bundle
    assert (bundle.description.site, bundle.description.rounds) == (SITE, 2)


def test_a_killed_report_resumes_and_a_second_one_trains_nothing_and_keeps_added_files(
    kit: Path, reported: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("reports", f"state/{reported['run']}/local"):
        shutil.rmtree(kit / name)
    fit, trained = Site.fit, []

    def watch(site: Site, *given: Any, **named: Any) -> Any:
        if len(trained) == 1 and not resumed:
            raise KeyboardInterrupt
        trained.append(given[1])
        return fit(site, *given, **named)

    monkeypatch.setattr(Site, "fit", watch)
    resumed = False
    with pytest.raises(KeyboardInterrupt):
        report_site(kit, Silent(), gallery=False)
    assert not (kit / "reports").exists()
    resumed = True
    made = Path(report_site(kit, Silent(), gallery=False)["folder"])
    assert trained == [1, 2]
    everything = set(Path(reported["folder"]).glob("sites/*/predictions.csv")).pop().read_bytes()
    assert (made / "sites" / SITE / "predictions.csv").read_bytes() == everything

    (made / "sites" / SITE / "signing-key.pem").write_text("mine")
    (kit / "reports" / f".{made.name}.report-killed").mkdir()
    report_site(kit, Silent(), run=made.name[:5], gallery=False)
    assert trained == [1, 2]
    assert (made / "sites" / SITE / "signing-key.pem").read_text() == "mine"
    assert [path.name for path in (kit / "reports").iterdir()] == [made.name]


def test_a_run_that_ended_early_is_reported_as_in_the_simulation_and_its_states_are_kept(tmp_path: Path) -> None:
    """The site has trained one round that the final prompts do not contain; the last request names the chosen round."""
    experiment = load(tmp_path, "federation.target_auc=0.01", *PERSONAL)
    kits = {site: make_kit(tmp_path / "kits", site) for site in SITES}
    plan = federate(experiment, kits)
    simulate(experiment, tmp_path / "simulated", Silent())
    kit = kits[SITE]
    made = report_site(kit, Silent(), gallery=False)
    assert made["round"] == 1
    assert (kit / "state" / plan.run / "round-0002.safetensors").exists()
    every = {"local", "federated", "fine-tuned", "interpolated", "ditto"}
    assert predictions(Path(made["folder"]), every) == predictions(tmp_path / "simulated", every)
    page = Path(made["page"]).read_text()
    assert "After round 1 of 2" not in page
    assert json.loads((Path(made["folder"]) / "report.json").read_text())["chosen_round"] == 1


def test_a_run_in_its_first_round_is_refused_and_a_busy_worker_is_reported(
    kit: Path, taken_part: tuple[Path, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = taken_part[1]
    busy = dataclasses.replace(Worker(load_site_settings(kit / "site.yaml"), ListingGate()).status(), run=run)
    busy = dataclasses.replace(busy, activity="train", round=1)
    monkeypatch.setattr("client.report.make_report.describe_site", lambda _: ({}, busy))
    notes: list[str] = []

    class Notes(Silent):
        def on_note(self, sentence: str) -> None:
            notes.append(sentence)

    report_site(kit, Notes(), gallery=False)
    assert any("busy with this run (round 1)" in note for note in notes)

    record = RunRecord(kit / "state" / run, run=run, site=SITE)
    received = record.read_received()
    assert received is not None
    header = Header(run, 1, received.backbone_digest, received.layout_hash)
    record.accept(RoundRequest(header, "train", 2, received.payload, "train"), received.data_digest)
    assert "not sent any prompts" in refused(kit)


def test_a_site_without_a_run_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    kit = make_kit(tmp_path, SITE)
    assert "no run yet" in refused(kit)
    (kit / "state").mkdir()
    assert "contains no run" in refused(kit)
    assert sorted(path.name for path in kit.iterdir()) == ["site.yaml", "state"]


def test_a_run_without_prompts_of_a_finished_round_is_refused(kit: Path, taken_part: tuple[Path, str, Path]) -> None:
    state = kit / "state" / taken_part[1]
    (state / "received.safetensors").unlink()
    assert f"{taken_part[1]}" in refused(kit)
    assert "not sent any prompts" in refused(kit)


def test_an_ambiguous_or_unknown_run_is_refused_with_the_names_of_the_runs(
    kit: Path, taken_part: tuple[Path, str, Path]
) -> None:
    run = taken_part[1]
    shutil.copytree(kit / "state" / run, kit / "state" / f"{run}-b")
    several = refused(kit, run=run[:4])
    assert "could be" in several
    assert f"{run}-b" in several
    assert run in refused(kit, run="other")
    # The copy still contains the files of the first run.
    assert "altered" in refused(kit, run=f"{run}-b")


@pytest.mark.parametrize(
    ("section", "change", "field"),
    [
        ("data", {"patients_per_class": 9}, "data.root"),
        ("model", {"weights": "other.safetensors"}, "model.weights"),
    ],
)
def test_other_images_or_weights_are_refused(kit: Path, section: str, change: dict[str, Any], field: str) -> None:
    settings = yaml.safe_load((kit / "site.yaml").read_text())
    if section == "model":
        own = load_site_settings(kit / "site.yaml")
        (document,) = (kit / "state").glob("*/proposal.json")
        proposal = Proposal.model_validate(json.loads(document.read_text())["proposal"])
        vit = load_backbone(join_proposal(own, proposal).model_copy(update={"seed": 7})).vit
        save_file({name: tensor.contiguous() for name, tensor in vit.state_dict().items()}, kit / "other.safetensors")
    settings[section] |= change
    (kit / "site.yaml").write_text(yaml.safe_dump(settings))
    assert field in refused(kit)


@pytest.mark.usefixtures("reported")
def test_damaged_files_are_refused_by_name(kit: Path, taken_part: tuple[Path, str, Path]) -> None:
    state = kit / "state" / taken_part[1]
    received = state / "received.safetensors"
    whole = received.read_bytes()
    received.write_bytes(whole[:-4])
    assert "received.safetensors" in refused(kit)
    received.write_bytes(whole)
    alone = state / "local" / "round-0002.safetensors"
    alone.write_bytes(alone.read_bytes()[:-4])
    assert "is trained again" in refused(kit)


def test_a_folder_with_other_content_is_refused(kit: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("")
    assert "name another folder" in refused(kit, out=out)
    (out / "report.json").write_text('{"run": "other"}')
    assert "run other" in refused(kit, out=out)
    assert "cannot be written" in refused(kit, out=out / "thesis.txt" / "report")


def test_two_reports_at_once_are_refused(kit: Path, taken_part: tuple[Path, str, Path]) -> None:
    with _lock(kit / "state" / taken_part[1] / "local"):
        assert "another report" in refused(kit)


def test_partially_written_lines_of_the_record_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, run="a", site="b")
    first = Answer("train", 10, 20, 1, "train", 4, {"loss": float("nan")})
    record.note(first)
    path = tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes() + b'{"schema": 1, "kind": "tr\n[]\n' + path.read_bytes() + b'{"schema"')
    answers, damaged = record.read_answers()
    assert [(answer.kind, answer.bytes_out) for answer in answers] == [("train", 20)] * 2
    assert damaged == 2


@pytest.mark.parametrize(
    "changes",
    [{"round": "7"}, {"round": True}, {"kind": "rumour"}, {"bytes_in": None}, {"metrics": {"loss": "low"}},
     {"metrics": [1]}, {"schema": 2}, {"more": 1}],
)  # fmt: skip
def test_an_invalid_line_of_the_record_is_counted(changes: dict[str, Any], tmp_path: Path) -> None:
    record, path = RunRecord(tmp_path, run="a", site="b"), tmp_path / "answers.jsonl"
    record.note(Answer("train", 10, 20, 1, "train", 4, {"loss": 0.5}))
    line = json.loads(path.read_text())
    assert record.read_answers()[1] == 0
    path.write_text(json.dumps({**line, **changes}) + "\n" + "[" * 100_000 + "\n")
    assert record.read_answers() == ((), 2)


def test_the_command_prints_the_verdict_or_one_json_document(kit: Path, reported: dict[str, Any]) -> None:
    runner = CliRunner()
    said = runner.invoke(app, ["site", "report", str(kit), "--no-gallery"])
    assert said.exit_code == 0, said.output
    assert reported["sentence"] in said.output
    document = json.loads(runner.invoke(app, ["site", "report", str(kit), "--no-gallery", "--json"]).stdout)
    assert (document["status"], document["verdict"]) == ("done", reported["verdict"])
    wrong = runner.invoke(app, ["site", "report", str(kit), "--run", "other", "--json"])
    assert wrong.exit_code == 2
    assert json.loads(wrong.stdout)["problems"][0]["field"] == "--run"
