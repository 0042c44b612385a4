"""Train one cell of a benchmark and return its line of cells.jsonl."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from client.site.candidates import Predicted, choose_model
from client.site.held_model import LentModel
from client.site.local_baseline import describe_local_training
from client.site.site import Site
from ept_fed.config.benchmark_cell import Cell
from ept_fed.data.datasets.prepare import SiteData
from ept_fed.errors import InputRefusedError
from ept_fed.evaluation.benchmark_summary import POOLED_METRICS
from ept_fed.evaluation.metrics import classification_metrics, supported_auc
from ept_fed.progress import Progress, Silent
from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.comparison import METRICS
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.reports.run.settings import BASELINE, CHOSEN, FEDERATED
from ept_fed.reports.run.training_record import TrainingRecord, describe_federated_training
from simulations.benchmark.analysis.features import count_fold, record_features
from simulations.benchmark.analysis.folder import AnalysisFolder
from simulations.benchmark.folder import SCHEMA
from simulations.benchmark.provenance import describe_machine, describe_sources, name_backbone, name_sources
from simulations.engine.baselines import train_centralised, train_centralised_prompts, train_local
from simulations.engine.federate import federate
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

__all__ = ["VALIDATION_METRICS", "CellTrainer", "Outcome"]

LoaderBySite = Callable[[str], LentModel]

VALIDATION_METRICS = ("validation_auc", "validation_loss")

# In these settings every site has the same model, its head included.
_SAME_EVERYWHERE = ("federated+head", "centralised")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Result of training a cell.

    Attributes:
        line: its line of cells.jsonl; None if it was not trained.
        parts: lines of the cells that were trained as parts of it: a choice is between two models, each of which is the
            model of another cell.
        refusal: reason why it was not trained; empty if it was.
        seconds: duration, including the loading of images and backbone.
    """

    line: dict[str, Any] | None
    refusal: str
    seconds: float
    parts: tuple[dict[str, Any], ...] = ()


class _Notes(Silent):
    """Forwards only a cell's notes, each with the cell's title in front."""

    def __init__(self, title: str, progress: Progress) -> None:
        self._title, self._progress = title, progress

    def on_note(self, sentence: str) -> None:
        """Forward the note."""
        self._progress.on_note(f"{self._title}: {sentence}")


class CellTrainer:
    """Trains one cell after another; keeps the last cell's images and backbone for cells that share them."""

    def __init__(self, scratch: Path, analysis: AnalysisFolder) -> None:
        """Set a folder that only the running cell writes to, and the folder in which features are stored."""
        self._scratch, self._analysis = scratch, analysis
        self._held: dict[str, VirtualFederation] = {}

    def prepare(self, cell: Cell) -> VirtualFederation:
        """Return a cell's federation.

        Raises:
            InputRefusedError: with the problems of model and data.
        """
        sources = name_sources(cell)
        if sources not in self._held:
            self._held.clear()
            self._held[sources] = prepare_federation(cell.experiment, cache=self._scratch.parent / "prefixes")
        return replace(self._held[sources], experiment=cell.experiment)

    def release(self) -> None:
        """Release the images and the backbone."""
        self._held.clear()

    def train(self, cell: Cell, progress: Progress, *, look: bool) -> Outcome:
        """Train a cell; a failure is reported in the outcome and not raised, so that the other cells still run.

        Args:
            cell: to train.
            progress: receives the notes of the cell and of its data; cells of the same data repeat the latter.
            look: also store its features.
        """
        started = time.perf_counter()
        line, parts, refusal = None, [], ""
        try:
            federation = self.prepare(cell)
            for note in federation.data.notes:
                progress.on_note(note)
            line, *parts = self._run(cell, federation, progress, look=look)
        except InputRefusedError as refused:
            # Whether there are enough images may depend on the split, and so on the seed.
            refusal = str(refused)
        except Exception as error:  # noqa: BLE001 - an error of one method must not lose the cells of others
            _log.exception("%s", cell.title)
            refusal = f"{type(error).__name__}: {error}"
        return Outcome(line, refusal, time.perf_counter() - started, tuple(parts))

    def _run(
        self, cell: Cell, federation: VirtualFederation, progress: Progress, *, look: bool
    ) -> list[dict[str, Any]]:
        """Return the line of a cell and of its parts: identity, and each site's metrics on its own images.

        If requested, its features are stored first, because a finished cell without them would be trained again.
        """
        started = time.perf_counter()
        shutil.rmtree(self._scratch, ignore_errors=True)
        lines = []
        for own, trained in _train(cell, federation, RunFolder(self._scratch), _Notes(cell.title, progress)):
            measured = {name: replace(data, test=count_fold(own, data)) for name, data in federation.data.sites.items()}
            sites = {name: {"images": len(data.test), **_assess(trained, data)} for name, data in measured.items()}
            for name, columns in _assess_pooled(own, trained, measured).items():
                sites[name] |= columns
            if look and own == cell and trained.averaged:
                self._analysis.write(record_features(cell, federation, trained.load, sites))
            lines.append(
                {
                    "key": own.key,
                    "schema": SCHEMA,
                    "status": "done" if trained.averaged else "failed",
                    "method": own.experiment.model.method,
                    "title": own.title,
                    "backbone": name_backbone(federation),
                    "data": federation.data.digest,
                    "sources": describe_sources(own.experiment),
                    "computed_with": describe_machine(federation.device),
                    "bytes_per_round": trained.sent,
                    "seconds": round(time.perf_counter() - started, 1),
                    "sites": sites,
                }
            )
        shutil.rmtree(self._scratch, ignore_errors=True)
        return lines


@dataclass(frozen=True)
class _Trained:
    """The models of a trained cell.

    Attributes:
        load: lends a site's model, ready to be assessed.
        describe: returns how its training ended.
        sent: bytes that a site sends per round.
        averaged: whether any round could be averaged; if not, there are no models.
        choose: returns the predictions of the model that a site chooses, and its columns of the line; None if the
            site's model is the one that `load` loads.
    """

    load: LoaderBySite
    describe: Callable[[str], TrainingRecord]
    sent: int
    averaged: bool
    choose: Callable[[SiteData], tuple[Predicted, dict[str, Any]]] | None = None


def _train(
    cell: Cell, federation: VirtualFederation, scratch: RunFolder, notes: Progress
) -> list[tuple[Cell, _Trained]]:
    """Return the models of a cell, and after them those of the cells that are parts of it."""
    if cell.setting == "chosen":
        federated, local = _train_federated(federation, scratch, notes), _train_local(federation, scratch, notes)
        parts = zip(cell.parts, (federated, local), strict=True)
        return [(cell, _choose(federation, local, federated)), *parts]
    if cell.setting == "local":
        return [(cell, _train_local(federation, scratch, notes))]
    if cell.setting == "centralised":
        pooled = train_centralised(federation, scratch, notes)
        return [(cell, _of_sites(lambda _name: pooled))]
    if cell.setting == "centralised-prompts":
        sites, prompts = train_centralised_prompts(federation, scratch, notes)
        return [(cell, _of_sites(sites.__getitem__, prompts))]
    return [(cell, _train_federated(federation, scratch, notes))]


def _train_local(federation: VirtualFederation, scratch: RunFolder, notes: Progress) -> _Trained:
    sites = train_local(federation, scratch, notes)
    return _of_sites(sites.__getitem__)


def _train_federated(federation: VirtualFederation, scratch: RunFolder, notes: Progress) -> _Trained:
    plan = federation.plan()
    sites = {
        name: federation.create_site(data, federation.keep_states(scratch, "federated", name))
        for name, data in federation.data.sites.items()
    }
    result = federate(federation, plan, sites, scratch, notes)

    def load(name: str) -> LentModel:
        sites[name].select_round(result.chosen)
        return sites[name].hold(result.payload)

    def describe(name: str) -> TrainingRecord:
        return describe_federated_training(result.rounds, name, result.chosen)

    return _Trained(load, describe, 4 * plan.layout.size, result.aggregated_anything)


def _choose(federation: VirtualFederation, local: _Trained, federated: _Trained) -> _Trained:
    """Return the models that the sites choose, see `client.site.candidates`."""

    def choose(data: SiteData) -> tuple[Predicted, dict[str, Any]]:
        loaders = {BASELINE: partial(local.load, data.name), FEDERATED: partial(federated.load, data.name)}
        predicted = {setting: Predicted.of(load, data) for setting, load in loaders.items()}
        found, choice = choose_model(data, loaders, predicted, federation.experiment)
        return found[CHOSEN], {"choice": choice.choice.name}

    return replace(federated, choose=choose)


def _of_sites(find: Callable[[str], Site], payload: Vector | None = None) -> _Trained:
    """Return the models that sites trained without exchange, with a payload over their own tensors if there is one."""

    def load(name: str) -> LentModel:
        return find(name).hold(payload)

    return _Trained(load, lambda name: describe_local_training(find(name)), sent=0, averaged=True)


def _assess(trained: _Trained, data: SiteData) -> dict[str, Any]:
    """Return the columns of results.csv for one site: quality on test and validation images, and training."""
    if not trained.averaged:
        undefined = (*METRICS, "supported_auc", *VALIDATION_METRICS, "rounds", "chosen_round", "training")
        return {**dict.fromkeys(undefined, float("nan")), "choice": ""}
    if trained.choose is None:
        predicted, columns = Predicted.of(partial(trained.load, data.name), data), {"choice": ""}
    else:
        predicted, columns = trained.choose(data)
    assessed = classification_metrics(data.test.labels.numpy(), predicted.test, data.task)
    validated = classification_metrics(data.validation.labels.numpy(), predicted.validation, data.task)
    record = trained.describe(data.name)
    return {
        **{metric: assessed[metric] for metric in METRICS},
        "supported_auc": supported_auc(data.test.labels.numpy(), predicted.test, data.task),
        **{metric: validated[metric.removeprefix("validation_")] for metric in VALIDATION_METRICS},
        "rounds": record.rounds,
        "chosen_round": record.chosen,
        "training": record.state,
        **columns,
    }


def _assess_pooled(cell: Cell, trained: _Trained, sites: Mapping[str, SiteData]) -> dict[str, dict[str, float]]:
    """Return `POOLED_METRICS` of each site's model: its quality on the test images of all sites together.

    NaN for a choice, as it is made for the images of one site.
    """
    if trained.choose is not None or not trained.averaged:
        return {name: dict.fromkeys(POOLED_METRICS, float("nan")) for name in sites}
    labels = np.concatenate([data.test.labels.numpy() for data in sites.values()])
    found: dict[str, dict[str, float]] = {}
    for name, data in sites.items():
        if found and cell.setting in _SAME_EVERYWHERE:
            found[name] = next(iter(found.values()))
            continue
        with trained.load(name) as held:
            scores = np.concatenate([held.predict(other.test) for other in sites.values()])
        quality = classification_metrics(labels, scores, data.task)
        found[name] = {metric: quality[metric.removeprefix("pooled_")] for metric in POOLED_METRICS}
    return found
