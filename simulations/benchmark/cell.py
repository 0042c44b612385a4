"""Train one cell of a benchmark and return its line of cells.jsonl."""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from client.site.local_baseline import describe_local_training
from client.site.site import Site
from ept_fed.config.benchmark_cell import Cell
from ept_fed.data.datasets.prepare import CachedDataset
from ept_fed.errors import InputRefusedError
from ept_fed.progress import Progress, Silent
from ept_fed.reports.run.comparison import METRICS
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.reports.run.training_record import TrainingRecord, describe_federated_training
from simulations.benchmark.analysis.features import count_fold, record_features
from simulations.benchmark.analysis.folder import AnalysisFolder
from simulations.benchmark.provenance import describe_machine, describe_sources, name_backbone, name_sources
from simulations.engine.baselines import train_centralised, train_centralised_prompts, train_local
from simulations.engine.federate import federate
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

__all__ = ["VALIDATION_METRICS", "CellTrainer", "Outcome"]

VALIDATION_METRICS = ("validation_auc", "validation_loss")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Result of training a cell.

    Attributes:
        line: its line of cells.jsonl; None if it was not trained.
        refusal: reason why it was not trained; empty if it was.
        seconds: duration, including the loading of images and backbone.
    """

    line: dict[str, Any] | None
    refusal: str
    seconds: float


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
        line, refusal = None, ""
        try:
            federation = self.prepare(cell)
            for note in federation.data.notes:
                progress.on_note(note)
            line = self._run(cell, federation, progress, look=look)
        except InputRefusedError as refused:
            # Whether there are enough images may depend on the split, and so on the seed.
            refusal = str(refused)
        except Exception as error:  # noqa: BLE001 - an error of one method must not lose the cells of others
            _log.exception("%s", cell.title)
            refusal = f"{type(error).__name__}: {error}"
        return Outcome(line, refusal, time.perf_counter() - started)

    def _run(self, cell: Cell, federation: VirtualFederation, progress: Progress, *, look: bool) -> dict[str, Any]:
        """Return a cell's line: its identity, and each site's metrics on its own images.

        If requested, its features are stored first, because a finished cell without them would be trained again.
        """
        started = time.perf_counter()
        shutil.rmtree(self._scratch, ignore_errors=True)
        trained, sent = _train(cell, federation, RunFolder(self._scratch), _Notes(cell.title, progress))
        load = None if trained is None else trained.load
        sites = {}
        for name, data in federation.data.sites.items():
            images = count_fold(cell, data)
            sites[name] = {"images": len(images), **_assess(trained, name, images, data.validation)}
        seconds = round(time.perf_counter() - started, 1)
        if look and load is not None:
            self._analysis.write(record_features(cell, federation, load, sites))
        shutil.rmtree(self._scratch, ignore_errors=True)
        return {
            "key": cell.key,
            "status": "failed" if load is None else "done",
            "method": cell.experiment.model.method,
            "title": cell.title,
            "backbone": name_backbone(federation),
            "data": federation.data.digest,
            "sources": describe_sources(cell.experiment),
            "computed_with": describe_machine(federation.device),
            "bytes_per_round": sent,
            "seconds": seconds,
            "sites": sites,
        }


@dataclass(frozen=True)
class _Trained:
    """A trained cell.

    Attributes:
        load: loads a site's model, ready to be assessed.
        describe: returns how its training ended.
    """

    load: Callable[[str], Site]
    describe: Callable[[str], TrainingRecord]


def _train(
    cell: Cell, federation: VirtualFederation, scratch: RunFolder, notes: Progress
) -> tuple[_Trained | None, int]:
    """Return the models of a trained cell (None if nothing was averaged), and a site's bytes per round."""
    if cell.setting == "local":
        return _of_sites(train_local(federation, scratch, notes).__getitem__), 0
    if cell.setting == "centralised":
        pooled = train_centralised(federation, scratch, notes)
        return _of_sites(lambda _name: pooled), 0
    if cell.setting == "centralised-prompts":
        return _of_sites(train_centralised_prompts(federation, scratch, notes).__getitem__), 0
    plan = federation.plan()
    sites = {
        name: federation.create_site(data, federation.keep_states(scratch, "federated", name))
        for name, data in federation.data.sites.items()
    }
    result = federate(plan, federation.data.digest, sites, scratch, notes, resume=None)
    sent = 4 * plan.layout.size
    if not result.aggregated_anything:
        return None, sent

    def federated(name: str) -> Site:
        sites[name].select_round(result.chosen)
        sites[name].adopt(result.payload)
        return sites[name]

    return _Trained(federated, lambda name: describe_federated_training(result.rounds, name, result.chosen)), sent


def _of_sites(load: Callable[[str], Site]) -> _Trained:
    return _Trained(load, lambda name: describe_local_training(load(name)))


def _assess(trained: _Trained | None, name: str, images: CachedDataset, validation: CachedDataset) -> dict[str, Any]:
    """Return the columns of results.csv for one site: quality on `images` and on validation images, and training."""
    if trained is None:
        return dict.fromkeys((*METRICS, *VALIDATION_METRICS, "rounds", "chosen_round", "training"), float("nan"))
    model = trained.load(name)
    _, assessed = model.assess(images)
    _, validated = model.assess(validation)
    record = trained.describe(name)
    return {
        **{metric: assessed[metric] for metric in METRICS},
        **{metric: validated[metric.removeprefix("validation_")] for metric in VALIDATION_METRICS},
        "rounds": record.rounds,
        "chosen_round": record.chosen,
        "training": record.state,
    }
