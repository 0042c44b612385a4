"""Comparison of a federation with its baselines, each assessed on every site's own images."""

from collections.abc import Callable, Mapping

from client.site.assessment import SiteLoader, assess_settings, load_federated
from client.site.site import Site
from ept_fed.progress import Progress
from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.comparison import Comparison
from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.reports.run.run_document import SiteTraffic
from ept_fed.reports.run.run_folder import RunFolder
from server.rounds.loop import FederationResult
from simulations.engine.baselines import train_centralised, train_local
from simulations.engine.virtual_sites import VirtualFederation

__all__ = ["LoaderBySite", "compare_settings", "prepare_settings"]

# Loads the model of one site under a setting into the slot, ready to be assessed.
LoaderBySite = Callable[[str], Site]


def prepare_settings(
    federation: VirtualFederation, sites: Mapping[str, Site], payload: Vector, folder: RunFolder, progress: Progress
) -> dict[str, LoaderBySite]:
    """Train the baselines; return a function per setting that loads a site's model, in the order of the table."""
    experiment = federation.experiment
    settings: dict[str, LoaderBySite] = {}
    if "local" in experiment.evaluation.baselines:
        local = train_local(federation, folder, progress)
        settings["local"] = lambda name: local[name]
    loaders = {name: load_federated(site, payload, experiment, progress.on_note) for name, site in sites.items()}
    for setting in next(iter(loaders.values())):
        settings[setting] = _of_site(loaders, setting)
    if "centralised" in experiment.evaluation.baselines:
        centralised = train_centralised(federation, folder, progress)
        settings["centralised"] = lambda _name: centralised
    return settings


def compare_settings(
    federation: VirtualFederation, settings: Mapping[str, LoaderBySite], result: FederationResult, folder: RunFolder
) -> Comparison:
    """Evaluate every setting on every site's own validation and test images, and write the predictions."""
    metrics: dict[str, dict[str, Mapping[str, float]]] = {name: {} for name in settings}
    for site, data in federation.data.sites.items():
        assessed = assess_settings(data, {setting: _bind(load, site) for setting, load in settings.items()})
        folder.write_predictions(site, assessed.rows, federation.data.classes, assessed.subgroups)
        for setting, values in assessed.metrics.items():
            metrics[setting][site] = values
    return Comparison(
        settings=tuple(settings),
        metrics=metrics,
        test_images={site: len(data.test) for site, data in federation.data.sites.items()},
        traffic={site: _traffic(site, result.rounds) for site in federation.data.sites},
    )


def _of_site(loaders: Mapping[str, Mapping[str, SiteLoader]], setting: str) -> LoaderBySite:
    return lambda name: loaders[name][setting]()


def _bind(load: LoaderBySite, site: str) -> SiteLoader:
    return lambda: load(site)


def _traffic(site: str, rounds: tuple[RoundRecord, ...]) -> SiteTraffic:
    exchanges = [record.sites[site] for record in rounds if site in record.sites]
    return SiteTraffic(
        sent_to_site=sum(exchange.bytes_sent for exchange in exchanges),
        received_from_site=sum(exchange.bytes_received for exchange in exchanges),
        largest_update=max((exchange.train_bytes_received for exchange in exchanges), default=0),
    )
