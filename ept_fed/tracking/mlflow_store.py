"""The MLflow writer: it uses a database in the run's folder, or the server in MLFLOW_TRACKING_URI.

Only `MlflowClient` is used, because the fluent interface would add the user's name and the command's path to every run.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from ept_fed.storage.files import write_text
from ept_fed.tracking.writer import TrackedRun

__all__ = ["MLflowWriter"]

# Limits of one request and of a parameter's length (mlflow/utils/validation.py).
_MAX_METRICS, _MAX_PARAMETERS, _LONGEST_PARAMETER = 1000, 100, 6000
_MARKER = "round/averaged"
Item = TypeVar("Item")


class MLflowWriter:
    """Writes one MLflow run; its id is stored in `mlflow-run.txt`, and a resumed run continues the same MLflow run."""

    def __init__(self, folder: Path, run: TrackedRun) -> None:
        """Open the MLflow run whose id is in the folder, or create one.

        Args:
            folder: folder for the database, its artifact files and the file with the run's id.
            run: description of the run; its name becomes the name of the MLflow experiment.

        Raises:
            MlflowException: if the store cannot be reached.
            OSError: if the folder cannot be written.
        """
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        address = os.environ.get("MLFLOW_TRACKING_URI")
        files = None if address else (folder / "mlflow-files").resolve().as_uri()
        self._client = MlflowClient(address or f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        note = folder / "mlflow-run.txt"
        known = note.read_text(encoding="utf-8").strip() if note.exists() else None
        self._run = self._find(known) or self._create(run, files)
        write_text(note, self._run + "\n")
        history = self._client.get_metric_history(self._run, _MARKER)
        self._held = {metric.step for metric in history}

    def write_round(self, number: int, scalars: Mapping[str, float]) -> None:
        """Log the numbers; the number that marks a complete round is logged last; see `Writer.write_round`."""
        if number not in self._held:
            self._log(number, {key: scalars[key] for key in sorted(scalars, key=lambda key: key == _MARKER)})
            self._held.add(number)

    def write_result(self, number: int, scalars: Mapping[str, float], table: str) -> None:
        """Log the table; a later table replaces an earlier one; see `Writer.write_result`."""
        held = self._client.get_run(self._run).data.metrics
        self._log(number, {key: value for key, value in scalars.items() if held.get(key) != value})
        self._client.log_text(self._run, table, "comparison.md")

    def close(self, *, done: bool) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run, "FINISHED" if done else "FAILED")

    def _find(self, run: str | None) -> str | None:
        """Return the run's id if the store contains it; the environment may name another store than last time."""
        if run is None:
            return None
        try:
            self._client.update_run(run, status="RUNNING")
        except MlflowException as missing:
            if missing.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run

    def _create(self, run: TrackedRun, files: str | None) -> str:
        found = self._client.get_experiment_by_name(run.name)
        experiment = found.experiment_id if found else self._client.create_experiment(run.name, files)
        created: str = self._client.create_run(experiment, run_name=run.name, tags={"ept_fed.run": run.run}).info.run_id
        for part in _batches(run.settings.items(), _MAX_PARAMETERS):
            parameters = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in part]
            self._client.log_batch(created, params=parameters)
        return created

    def _log(self, step: int, scalars: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        for part in _batches(scalars.items(), _MAX_METRICS):
            self._client.log_batch(self._run, metrics=[Metric(key, value, now, step) for key, value in part])


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    waiting = iter(items)
    while part := list(islice(waiting, size)):
        yield part
