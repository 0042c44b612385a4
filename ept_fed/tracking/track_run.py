"""Writing a finished run's folder to a tracker; the numbers are the same as with tracking during the run."""

from pathlib import Path

from pydantic import ValidationError

from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.reports.run.comparison import Comparison
from ept_fed.reports.run.read_run import read_run
from ept_fed.tracking.registry import WRITERS, check_writers
from ept_fed.tracking.scalars import describe_settings
from ept_fed.tracking.tracker import Tracker
from ept_fed.tracking.writer import TrackedRun

__all__ = ["track_run"]


def track_run(folder: Path, name: str) -> str:
    """Write a run's rounds and its final table to a tracker, and return the location of the numbers.

    A round that the tracker already has is not written twice.

    Raises:
        InputRefusedError: if the folder is damaged, the tracker's package is missing or its store fails.
    """
    problems = check_writers([name], "--format")
    if problems:
        raise InputRefusedError(problems)
    run = read_run(folder)
    try:
        experiment = Experiment.model_validate(run.config)
    except ValidationError as error:
        fix = f"does not fit this version's settings ({error.error_count()} problems); use the version that wrote it"
        raise InputRefusedError([Problem("config.yaml", str(folder / "config.yaml"), fix)]) from error
    failures: list[str] = []
    with Tracker([name], folder, failures.append) as tracker:
        tracker.start(TrackedRun(experiment.name, str(run.report["run"]), describe_settings(experiment)), run.rounds)
        done = run.report["status"] == "done"
        rows = Comparison.from_json(run.report).rows() if done else []
        tracker.write_result(rows, done=done)
    if failures:
        raise InputRefusedError([Problem("--format", name, failures[0])])
    return WRITERS[name].summary.replace("RUN", str(folder))
