"""The registry of trackers; their packages are optional and are imported only when a tracker is opened.

Except for the functions that open a tracker, the module has no side effects, and it imports neither torch nor Flower:
simulations use it, and the consortium's server may use it.
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
    """The registry entry of one tracker.

    Attributes:
        summary: where the numbers are written and how to view them.
        package: import name of the package that the extra installs; the extra has the tracker's name.
        open: function from an existing run folder and the run's description to a writer.
    """

    summary: str
    package: str
    open: Callable[[Path, TrackedRun], Writer]


def _open_tensorboard(folder: Path, run: TrackedRun) -> Writer:
    from ept_fed.tracking.tensorboard_events import TensorBoardWriter

    return TensorBoardWriter(folder / "tracking" / "tensorboard", run)


def _open_mlflow(folder: Path, run: TrackedRun) -> Writer:
    # mlflow reads this at import; otherwise it sends usage data to its developers' server.
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
        "A database for this run, RUN/tracking/mlflow.db, or the server in MLFLOW_TRACKING_URI.",
        "mlflow",
        _open_mlflow,
    ),
}


def check_writers(names: Sequence[str], field: str = "--track") -> list[Problem]:
    """Return a problem for each unknown name and for each tracker whose package is not installed."""
    found = []
    for name in dict.fromkeys(names):
        if name not in WRITERS:
            found.append(Problem(field, name, f"is not a tracker; choose from {', '.join(WRITERS)}"))
        elif find_spec(WRITERS[name].package) is None:
            fix = f"needs a package that is not installed: pip install 'ept-fed[{name}]'"
            found.append(Problem(field, name, fix))
    return found
