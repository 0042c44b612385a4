"""`ept-fed simulate`: one federation over virtual sites in this process, its baselines, and the comparison."""

import logging
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context

import ept_fed
from client.app import create_client_app
from client.site import Site
from ept_fed.config import Experiment
from ept_fed.problems import InputRefusedError
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import Phase
from ept_fed.protocol.plan import Plan
from ept_fed.reports.comparison import Comparison, SiteTraffic
from ept_fed.reports.gallery import GalleryItem, most_confident_errors
from ept_fed.reports.predictions import list_predictions
from ept_fed.reports.progress import Progress
from ept_fed.reports.read_run import read_run
from ept_fed.reports.run_folder import RunFolder
from ept_fed.reports.run_log import log_to_file
from ept_fed.reports.write_reports import write_reports
from server.app import create_server_app
from server.rounds import FederationResult, RoundRecord
from simulations.baselines import train_centralised, train_local
from simulations.local_grid import run_locally
from simulations.virtual_sites import VirtualFederation, prepare_federation

__all__ = ["simulate"]

_GALLERY = 6


def simulate(experiment: Experiment, out: Path, progress: Progress) -> Mapping[str, Any]:
    """Run an experiment into the folder `out` and return its report.

    Args:
        experiment: validated settings.
        out: run folder; must not hold anything yet. It is created only once everything that can be refused was checked.
        progress: told what happens.

    Returns:
        the content of report.json; `status` is "failed" if no round averaged anything.

    Raises:
        InputRefusedError: with every problem of data, model and folder.
    """
    # Flower logs each phase at INFO; the run's own display says the same in the consortium's words.
    logging.getLogger("flwr").setLevel(logging.WARNING)
    started = time.perf_counter()
    folder = RunFolder(out)
    federation = _prepare(experiment, folder)
    folder.create(experiment.to_yaml())
    folder.write_partition(federation.data.partition)
    with log_to_file(out / "run.log"):
        report, rows = _run(federation, folder, progress)
    report = {**report, "seconds": round(time.perf_counter() - started, 1)}
    folder.write_report(report, rows)
    if report["status"] == "done":
        try:
            write_reports(out, gallery=_collect_gallery(out, federation))
        except InputRefusedError as refusal:
            # The run itself is done and on disk; its pages must not make it look as if nothing had started.
            progress.on_note(f"no report pages: {refusal}")
    return {**report, "rows": rows, "folder": str(out)}


def _collect_gallery(out: Path, federation: VirtualFederation) -> dict[str, list[GalleryItem]]:
    """Return each site's most confident errors with their pictures, for the site's own page."""
    if federation.data.task == "multi_label":
        return {}
    run, classes = read_run(out), federation.data.classes
    gallery = {}
    for site, data in federation.data.sites.items():
        position = {record.image: index for index, record in enumerate(data.test.records)}
        errors = most_confident_errors(run.sites[site].test, classes, _GALLERY)
        gallery[site] = [
            GalleryItem(e.image, data.test.as_png(position[e.image]), e.true, e.predicted, e.probability)
            for e in errors
        ]
    return gallery


def _run(
    federation: VirtualFederation, folder: RunFolder, progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    for note in federation.data.notes:
        progress.on_note(note)
    experiment, plan = federation.experiment, federation.plan()
    sites = {name: federation.create_site(data) for name, data in federation.data.sites.items()}
    result = _federate(plan, sites, folder, progress)
    settings = {}
    if result.aggregated_anything:
        for name, site in sites.items():
            site.adopt(result.payload)
            folder.write_site_model(name, *site.release())
        settings = _train_settings(federation, sites, progress)
    comparison = _compare(federation, settings, result, folder)
    report = {
        "schema": 1,
        "status": "done" if result.aggregated_anything else "failed",
        "name": experiment.name,
        "run": plan.run,
        "seed": plan.seed,
        "rounds": plan.rounds,
        "share": experiment.federation.share,
        "strategy": plan.strategy,
        "ended": result.ended,
        "classes": list(federation.data.classes),
        "backbone": {"name": federation.backbone.name, "digest": plan.backbone_digest},
        "payload": {"layout": plan.layout.to_json(), "hash": plan.layout.hash, "bytes": 4 * plan.layout.size},
        "data": federation.data.summary(),
        "notes": list(federation.data.notes),
        **comparison.to_json(),
        "versions": {"ept_fed": ept_fed.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": str(federation.device),
    }
    return report, comparison.rows()


def _train_settings(
    federation: VirtualFederation, sites: Mapping[str, Site], progress: Progress
) -> dict[str, Mapping[str, Site]]:
    """Return each setting's models by site, in the order of the table."""
    baselines = federation.experiment.evaluation.baselines
    settings: dict[str, Mapping[str, Site]] = {}
    if "local" in baselines:
        settings["local"] = train_local(federation, progress)
    settings["federated"] = sites
    if "centralised" in baselines:
        settings["centralised"] = dict.fromkeys(sites, train_centralised(federation, progress))
    return settings


def _prepare(experiment: Experiment, folder: RunFolder) -> VirtualFederation:
    problems = folder.check_free()
    try:
        federation = prepare_federation(experiment)
    except InputRefusedError as refusal:
        raise InputRefusedError([*problems, *refusal.problems]) from refusal
    if problems:
        raise InputRefusedError(problems)
    return federation


def _federate(plan: Plan, sites: Mapping[str, Site], folder: RunFolder, progress: Progress) -> FederationResult:
    results: list[FederationResult] = []

    def find_site(context: Context) -> Site:
        return sites[str(context.node_config["site"])]

    progress.on_stage("federated", tuple(sites), plan.rounds)
    folder.write_prompts(plan, 0, plan.initial)
    recorder = _Recorder(plan, folder, progress)
    run_locally(create_server_app(plan, recorder, results.append), create_client_app(find_site), tuple(sites))
    (result,) = results
    return result


class _Recorder:
    """Writes each round into the run folder and passes its numbers on to the display."""

    def __init__(self, plan: Plan, folder: RunFolder, progress: Progress) -> None:
        self._plan, self._folder, self._progress = plan, folder, progress

    def on_site(self, round_number: int, site: str, phase: Phase, metrics: Mapping[str, float]) -> None:
        if phase == "train":
            shown = {"loss": metrics["loss"], "auc": metrics["validation_auc"]}
        else:
            shown = {"auc": metrics["auc"]}
        self._progress.on_site(round_number, site, shown)

    def on_payload(self, round_number: int, payload: Vector, seconds: float) -> None:
        self._folder.write_prompts(self._plan, round_number, payload)
        self._progress.on_round(round_number, seconds)

    def on_round(self, record: RoundRecord) -> None:
        self._folder.write_round(record.to_json())
        for refusal in record.refused:
            what = "trained nothing in" if refusal.phase == "train" else "did not evaluate"
            self._progress.on_note(f"{refusal.site} {what} round {record.round}: {refusal.reason}")
        if not record.aggregated:
            self._progress.on_note(f"round {record.round} {record.outcome}")


def _compare(
    federation: VirtualFederation,
    settings: Mapping[str, Mapping[str, Site]],
    result: FederationResult,
    folder: RunFolder,
) -> Comparison:
    """Evaluate every setting on every site's own test images, and write the predictions."""
    metrics: dict[str, dict[str, Mapping[str, float]]] = {name: {} for name in settings}
    for site, data in federation.data.sites.items():
        rows: list[Mapping[str, Any]] = []
        for setting, models in settings.items():
            probabilities, _ = models[site].assess(data.validation)
            rows += list_predictions(data.validation, "validation", setting, probabilities)
            probabilities, metrics[setting][site] = models[site].assess(data.test)
            rows += list_predictions(data.test, "test", setting, probabilities)
        folder.write_predictions(site, rows, federation.data.classes)
    return Comparison(
        settings=tuple(settings),
        metrics=metrics,
        test_images={site: len(data.test) for site, data in federation.data.sites.items()},
        traffic={site: _traffic(site, result.rounds) for site in federation.data.sites},
    )


def _traffic(site: str, rounds: tuple[RoundRecord, ...]) -> SiteTraffic:
    exchanges = [record.sites[site] for record in rounds]
    return SiteTraffic(
        sent_to_site=sum(exchange.bytes_sent for exchange in exchanges),
        received_from_site=sum(exchange.bytes_received for exchange in exchanges),
        largest_update=max(exchange.train_bytes_received for exchange in exchanges),
    )
