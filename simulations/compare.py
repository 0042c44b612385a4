"""The settings that a federation is measured against, each assessed on every site's own images."""

from collections.abc import Callable, Mapping
from typing import Any

from client.personalise import fine_tune, interpolate, recall_ditto
from client.site import Site
from ept_fed.protocol.layout import Vector
from ept_fed.reports.comparison import Comparison, SiteTraffic
from ept_fed.reports.predictions import list_predictions, list_subgroups
from ept_fed.reports.progress import Progress
from ept_fed.reports.run_folder import RunFolder
from ept_fed.training.loop import TrainingDivergedError
from server.round_record import RoundRecord
from server.rounds import FederationResult
from simulations.baselines import train_centralised, train_local
from simulations.virtual_sites import VirtualFederation

__all__ = ["compare_settings", "prepare_settings"]

# Brings one site's model under a setting into the slot, ready to be assessed.
Recall = Callable[[str], Site]


def prepare_settings(
    federation: VirtualFederation, sites: Mapping[str, Site], payload: Vector, folder: RunFolder, progress: Progress
) -> dict[str, Recall]:
    """Train the baselines, and return how to get every setting's model of a site, in the order of the table."""
    experiment, settings = federation.experiment, {}
    if "local" in experiment.evaluation.baselines:
        local = train_local(federation, folder, progress)
        settings["local"] = lambda name: local[name]
    settings |= _federated_settings(federation, sites, payload, progress)
    if "centralised" in experiment.evaluation.baselines:
        centralised = train_centralised(federation, folder, progress)
        settings["centralised"] = lambda _name: centralised
    return settings


def compare_settings(
    federation: VirtualFederation, settings: Mapping[str, Recall], result: FederationResult, folder: RunFolder
) -> Comparison:
    """Evaluate every setting on every site's own validation and test images, and write the predictions."""
    metrics: dict[str, dict[str, Mapping[str, float]]] = {name: {} for name in settings}
    for site, data in federation.data.sites.items():
        rows: list[Mapping[str, Any]] = []
        subgroups = list_subgroups([*data.validation.records, *data.test.records])
        for setting, recall in settings.items():
            model = recall(site)
            probabilities, _ = model.assess(data.validation)
            rows += list_predictions(data.validation, "validation", setting, probabilities, subgroups)
            probabilities, metrics[setting][site] = model.assess(data.test)
            rows += list_predictions(data.test, "test", setting, probabilities, subgroups)
        folder.write_predictions(site, rows, federation.data.classes, subgroups)
    return Comparison(
        settings=tuple(settings),
        metrics=metrics,
        test_images={site: len(data.test) for site, data in federation.data.sites.items()},
        traffic={site: _traffic(site, result.rounds) for site in federation.data.sites},
    )


def _federated_settings(
    federation: VirtualFederation, sites: Mapping[str, Site], payload: Vector, progress: Progress
) -> dict[str, Recall]:
    experiment, own = federation.experiment, federation.experiment.personalisation
    epochs = own.fine_tune_epochs

    def federated(name: str) -> Site:
        sites[name].adopt(payload)
        return sites[name]

    def fine_tuned(name: str) -> Site:
        try:
            fine_tune(sites[name], payload, experiment.training, epochs=epochs or 0, seed=experiment.seed)
        except TrainingDivergedError as diverged:
            progress.on_note(f"fine-tuned: {name} keeps the federated model, because {diverged}")
            return federated(name)
        return sites[name]

    def interpolated(name: str) -> Site:
        share = interpolate(sites[name], payload)
        progress.on_note(f"interpolated: {name} mixes {share:.0%} of its own prompts with the federation's")
        return sites[name]

    def ditto(name: str) -> Site:
        if not recall_ditto(sites[name]):
            progress.on_note(f"ditto: {name} never trained, so it has the federated model")
            return federated(name)
        return sites[name]

    settings: dict[str, Recall] = {"federated": federated}
    if epochs is not None:
        settings["fine-tuned"] = fine_tuned
    if own.interpolate:
        settings["interpolated"] = interpolated
    if own.ditto is not None:
        settings["ditto"] = ditto
    return settings


def _traffic(site: str, rounds: tuple[RoundRecord, ...]) -> SiteTraffic:
    exchanges = [record.sites[site] for record in rounds if site in record.sites]
    return SiteTraffic(
        sent_to_site=sum(exchange.bytes_sent for exchange in exchanges),
        received_from_site=sum(exchange.bytes_received for exchange in exchanges),
        largest_update=max((exchange.train_bytes_received for exchange in exchanges), default=0),
    )
