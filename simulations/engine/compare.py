"""Comparison of a federation with its baselines, each assessed on every site's own images."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from client.site.assessment import assess_settings, load_federated, release
from client.site.candidates import SiteChoice, SiteLoader
from client.site.held_model import LentModel
from client.site.local_baseline import describe_local_training
from client.site.site import Site
from ept_fed.progress import Progress
from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.comparison import Comparison
from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.reports.run.run_document import SiteTraffic
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.reports.run.training_record import TrainingRecord, describe_federated_training
from server.rounds.loop import FederationResult
from simulations.engine.baselines import train_centralised, train_local
from simulations.engine.virtual_sites import VirtualFederation

__all__ = ["LoaderBySite", "Setting", "compare_settings", "describe_training", "prepare_settings"]

# Lends the model of one site under a setting, ready to be assessed.
LoaderBySite = Callable[[str], LentModel]


@dataclass(frozen=True)
class Setting:
    """The models of a setting.

    Attributes:
        load: lends a site's model.
        find: returns the site that was trained without exchange; None for models of the federation.
    """

    load: LoaderBySite
    find: Callable[[str], Site] | None = None


def prepare_settings(
    federation: VirtualFederation, sites: Mapping[str, Site], payload: Vector, folder: RunFolder, progress: Progress
) -> dict[str, Setting]:
    """Train the baselines; return the models of each setting, in the order of the table."""
    experiment = federation.experiment
    settings: dict[str, Setting] = {}
    if "local" in experiment.evaluation.baselines:
        settings["local"] = _of_baseline(train_local(federation, folder, progress).__getitem__)
    loaders = {name: load_federated(site, payload, experiment, progress.on_note) for name, site in sites.items()}
    for setting in next(iter(loaders.values())):
        settings[setting] = Setting(_of_site(loaders, setting))
    if "centralised" in experiment.evaluation.baselines:
        centralised = train_centralised(federation, folder, progress)
        settings["centralised"] = _of_baseline(lambda _name: centralised)
    return settings


def compare_settings(
    federation: VirtualFederation, settings: Mapping[str, Setting], result: FederationResult, folder: RunFolder
) -> Comparison:
    """Evaluate every setting on every site's own images; write each site's predictions and the model that it uses."""
    metrics: dict[str, dict[str, Mapping[str, float]]] = {}
    choices: dict[str, SiteChoice] = {}
    for site, data in federation.data.sites.items():
        loaders = {name: partial(setting.load, site) for name, setting in settings.items()}
        if not loaders:
            continue
        assessed = assess_settings(data, loaders, federation.experiment)
        folder.write_predictions(site, assessed.rows, federation.data.classes, assessed.subgroups)
        folder.write_site_model(site, *release(assessed, loaders, federation.experiment))
        for setting, values in assessed.metrics.items():
            metrics.setdefault(setting, {})[site] = values
        if assessed.choice is not None:
            choices[site] = assessed.choice
    return Comparison(
        settings=tuple(metrics),
        metrics=metrics,
        test_images={site: len(data.test) for site, data in federation.data.sites.items()},
        traffic={site: _traffic(site, result.rounds) for site in federation.data.sites},
        choices={site: choice.to_json() for site, choice in choices.items()},
    )


def describe_training(
    settings: Mapping[str, Setting], result: FederationResult, sites: Iterable[str]
) -> dict[str, dict[str, TrainingRecord]]:
    """Return how training ended, by setting and site, for the federation and the baselines that were trained."""
    found: dict[str, dict[str, TrainingRecord]] = {}
    for name, setting in settings.items():
        if name == "federated":
            rounds, chosen = result.rounds, result.chosen
            found[name] = {site: describe_federated_training(rounds, site, chosen) for site in sites}
        elif setting.find is not None:
            found[name] = {site: describe_local_training(setting.find(site)) for site in sites}
    return found


def _of_site(loaders: Mapping[str, Mapping[str, SiteLoader]], setting: str) -> LoaderBySite:
    return lambda name: loaders[name][setting]()


def _of_baseline(find: Callable[[str], Site]) -> Setting:
    return Setting(lambda name: find(name).hold(), find)


def _traffic(site: str, rounds: tuple[RoundRecord, ...]) -> SiteTraffic:
    exchanges = [record.sites[site] for record in rounds if site in record.sites]
    return SiteTraffic(
        sent_to_site=sum(exchange.bytes_sent for exchange in exchanges),
        received_from_site=sum(exchange.bytes_received for exchange in exchanges),
        largest_update=max((exchange.train_bytes_received for exchange in exchanges), default=0),
    )
