"""Evaluation of the federated and the personalised models of one site on its own images."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from client.site.candidates import (
    Predicted,
    SiteChoice,
    SiteLoader,
    choose_model,
    release_choice,
    release_loaded,
)
from client.site.held_model import HeldModel, LentModel
from client.site.personalise import fine_tune, interpolate, load_ditto
from client.site.site import Site
from ept_fed.config.experiment import Experiment
from ept_fed.data.datasets.prepare import SiteData
from ept_fed.evaluation.metrics import classification_metrics
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import QUALITY_METRICS
from ept_fed.reports.run.predictions import list_predictions, list_subgroups
from ept_fed.reports.run.settings import BASELINE, FEDERATED
from ept_fed.training.loop import TrainingDivergedError

__all__ = ["Assessment", "assess_settings", "load_federated", "release"]


@dataclass(frozen=True)
class Assessment:
    """Results of one site under every setting.

    Attributes:
        rows: rows of predictions.csv, see `list_predictions`.
        subgroups: names of the subgroup columns.
        metrics: setting -> metric -> value on the test images.
        choice: the model that the site chose; None if the experiment does not ask for a choice.
    """

    rows: tuple[Mapping[str, Any], ...]
    subgroups: tuple[str, ...]
    metrics: Mapping[str, Mapping[str, float]]
    choice: SiteChoice | None


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

    def federated() -> LentModel:
        return site.hold(payload)

    @contextmanager
    def fine_tuned() -> Iterator[HeldModel]:
        with site.hold(payload) as held:
            try:
                fine_tune(held, experiment.training, epochs=own.fine_tune_epochs or 0, seed=experiment.seed)
            except TrainingDivergedError as diverged:
                note(f"fine-tuned: {site.name} keeps the federated model, because {diverged}")
                held.adopt(payload)
            yield held

    @contextmanager
    def interpolated() -> Iterator[HeldModel]:
        with site.hold() as held:
            share = interpolate(held, payload)
            note(f"interpolated: {site.name} mixes {share:.0%} of its own prompts with the federation's")
            yield held

    @contextmanager
    def ditto() -> Iterator[HeldModel]:
        with site.hold(payload) as held:
            if not load_ditto(held):
                note(f"ditto: {site.name} never trained, so it has the federated model")
            yield held

    settings: dict[str, SiteLoader] = {"federated": federated}
    if own.fine_tune_epochs is not None:
        settings["fine-tuned"] = fine_tuned
    if own.interpolate:
        settings["interpolated"] = interpolated
    if own.ditto is not None:
        settings["ditto"] = ditto
    return settings


def assess_settings(data: SiteData, loaders: Mapping[str, SiteLoader], experiment: Experiment) -> Assessment:
    """Evaluate every setting on a site's own validation and test images, and choose the model that the site uses.

    Args:
        data: the site's images.
        loaders: loads the model of each setting, in the order of the table.
        experiment: says whether the site chooses, and how heads are computed.
    """
    predicted = {setting: Predicted.of(load, data) for setting, load in loaders.items()}
    choice = None
    if experiment.personalisation.choose:
        candidates, choice = choose_model(data, loaders, predicted, experiment)
        # The local model first, then the other candidates, then the settings that are no candidates.
        first = {name: own for name, own in candidates.items() if name == BASELINE}
        predicted = first | candidates | {name: own for name, own in predicted.items() if name not in candidates}
    rows: list[Mapping[str, Any]] = []
    subgroups = list_subgroups([*data.validation.records, *data.test.records])
    for setting, own in predicted.items():
        rows += list_predictions(data.validation, "validation", setting, own.validation, subgroups)
        rows += list_predictions(data.test, "test", setting, own.test, subgroups)
    labels = data.test.labels.numpy()
    metrics = {setting: classification_metrics(labels, own.test, data.task) for setting, own in predicted.items()}
    chosen = {setting: {name: values[name] for name in QUALITY_METRICS} for setting, values in metrics.items()}
    return Assessment(tuple(rows), subgroups, chosen, choice)


def release(
    assessment: Assessment, loaders: Mapping[str, SiteLoader], experiment: Experiment
) -> tuple[dict[str, Vector], dict[str, Any]]:
    """Return tensors and description of the model that the site uses: the chosen one, or else the federated one."""
    if assessment.choice is None:
        return release_loaded(loaders[FEDERATED])
    return release_choice(assessment.choice, loaders, experiment)
