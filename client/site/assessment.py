"""Evaluation of the federated and the personalised models of one site on its own images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from client.site.personalise import fine_tune, interpolate, load_ditto
from client.site.site import Site
from ept_fed.config.experiment import Experiment
from ept_fed.data.datasets.prepare import SiteData
from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.predictions import list_predictions, list_subgroups
from ept_fed.training.loop import TrainingDivergedError

__all__ = ["Assessment", "SiteLoader", "assess_settings", "load_federated"]

# Loads a site's model under a setting into the slot, ready to be evaluated.
SiteLoader = Callable[[], Site]


@dataclass(frozen=True)
class Assessment:
    """Results of one site under every setting.

    Attributes:
        rows: rows of predictions.csv, see `list_predictions`.
        subgroups: names of the subgroup columns.
        metrics: setting -> metric -> value on the test images.
    """

    rows: tuple[Mapping[str, Any], ...]
    subgroups: tuple[str, ...]
    metrics: Mapping[str, Mapping[str, float]]


def load_federated(
    site: Site, payload: Vector, experiment: Experiment, note: Callable[[str], None]
) -> dict[str, SiteLoader]:
    """Return a loader of the site's model for each setting that starts from the federation's payload.

    Args:
        site: the site, with its state after the round that produced the payload.
        payload: the federation's payload.
        experiment: contains the requested kinds of personalisation.
        note: called by a loader with a message for the user.
    """
    own = experiment.personalisation

    def federated() -> Site:
        site.adopt(payload)
        return site

    def fine_tuned() -> Site:
        try:
            fine_tune(site, payload, experiment.training, epochs=own.fine_tune_epochs or 0, seed=experiment.seed)
        except TrainingDivergedError as diverged:
            note(f"fine-tuned: {site.name} keeps the federated model, because {diverged}")
            return federated()
        return site

    def interpolated() -> Site:
        share = interpolate(site, payload)
        note(f"interpolated: {site.name} mixes {share:.0%} of its own prompts with the federation's")
        return site

    def ditto() -> Site:
        if not load_ditto(site):
            note(f"ditto: {site.name} never trained, so it has the federated model")
            return federated()
        return site

    settings: dict[str, SiteLoader] = {"federated": federated}
    if own.fine_tune_epochs is not None:
        settings["fine-tuned"] = fine_tuned
    if own.interpolate:
        settings["interpolated"] = interpolated
    if own.ditto is not None:
        settings["ditto"] = ditto
    return settings


def assess_settings(data: SiteData, settings: Mapping[str, SiteLoader]) -> Assessment:
    """Evaluate every setting on a site's own validation and test images."""
    rows: list[Mapping[str, Any]] = []
    metrics: dict[str, Mapping[str, float]] = {}
    subgroups = list_subgroups([*data.validation.records, *data.test.records])
    for setting, load in settings.items():
        model = load()
        probabilities, _ = model.assess(data.validation)
        rows += list_predictions(data.validation, "validation", setting, probabilities, subgroups)
        probabilities, metrics[setting] = model.assess(data.test)
        rows += list_predictions(data.test, "test", setting, probabilities, subgroups)
    return Assessment(tuple(rows), subgroups, metrics)
