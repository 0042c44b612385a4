"""The registry of trackers; the packages behind them are extras and are imported when opened.

Pure but for the openers, and without torch or Flower: a simulation uses it and the consortium's server may.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ept_fed.errors import Problem
from ept_fed.tracking.writer import TrackedRun, Writer

__all__ = ["WRITERS", "WriterInfo", "check_writers"]


@dataclass(frozen=True)
class WriterInfo:
    """One tracker.

    Attributes:
        summary: where its numbers go and how to see them.
        package: what its extra, of the tracker's own name, installs: the import name.
        open: (folder of a run, what it is) to a writer; the folder exists.
    """

    summary: str
    package: str
    open: Callable[[Path, TrackedRun], Writer]


def _open_tensorboard(folder: Path, run: TrackedRun) -> Writer:
    from ept_fed.tracking.tensorboard_events import TensorBoardWriter

    return TensorBoardWriter(folder / "tracking" / "tensorboard", run)


def _open_mlflow(folder: Path, run: TrackedRun) -> Writer:
    # Read when mlflow is imported: without it mlflow reports which of its calls are used to its makers' server.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from ept_fed.tracking.mlflow_store import MLflowWriter

    return MLflowWriter(folder / "tracking", run)


WRITERS: dict[str, WriterInfo] = {
    "tensorboard": WriterInfo(
        "An event file in RUN/tracking/tensorboard; see it with `tensorboard --logdir RUN/tracking`.",
        "tensorboard",
        _open_tensorboard,
    ),
    "mlflow": WriterInfo(
        "A database of the run's own, RUN/tracking/mlflow.db, or the server that MLFLOW_TRACKING_URI names.",
        "mlflow",
        _open_mlflow,
    ),
}


def check_writers(names: Sequence[str], field: str = "--track") -> list[Problem]:
    """Return a problem for each name that is unknown, and for each whose package is not installed."""
    found = []
    for name in dict.fromkeys(names):
        if name not in WRITERS:
            found.append(Problem(field, name, f"is no tracker; there are {', '.join(WRITERS)}"))
        elif find_spec(WRITERS[name].package) is None:
            fix = f"needs a package that is not installed: pip install 'ept-fed[{name}]'"
            found.append(Problem(field, name, fix))
    return found
