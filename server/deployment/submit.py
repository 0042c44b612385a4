"""Submission of runs to the server of a kit: start, follow and end a run; only one run at a time."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from ept_fed.config.base import Name
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.proposal import propose
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.validation.experiment import check_sites, validate_shared
from ept_fed.validation.load_experiment import load_experiment
from server.deployment.flower_bundle import build_bundle
from server.deployment.readiness import is_ready
from server.deployment.run_state import RUN_KEY, read_json_file
from server.deployment.server_kit import ServerKit, open_server_kit
from server.deployment.service import ServerAwayError, find_superlink_port
from server.deployment.superlink_control import Control, ControlError, Run, open_control

__all__ = ["RunEnd", "connect", "end_run", "follow", "run_experiment"]

_POLL_SECONDS = 1.0
_MAX_UNANSWERED = 30.0
_READY_SECONDS = 60.0
_NAME: TypeAdapter[str] = TypeAdapter(Name)


@dataclass(frozen=True)
class RunEnd:
    """The end of a run, or its submission if it is not followed; `ended` states the reason."""

    name: str
    folder: Path
    status: Literal["done", "failed", "stopped", "submitted"]
    ended: str


def run_experiment(
    kit_folder: Path,
    config: Path | None,
    overrides: Sequence[str],
    *,
    name: str | None,
    resume: bool,
    wait: bool,
    watch: Callable[[ServerKit, str], None],
) -> RunEnd:
    """Submit an experiment and follow it to its end.

    Args:
        kit_folder: kit of the running server.
        config: the experiment; None only with `resume`, for the original settings of the run.
        overrides: `key.path=value` strings.
        name: name of the run and its folder; None uses the experiment's name, or with `resume` the newest run's.
        resume: continue an interrupted run after its last checkpoint.
        wait: follow the run; otherwise return after the submission.
        watch: called about once per second while the run is in progress.

    Raises:
        InputRefusedError: if settings are refused, the name is in use, or another run is in progress.
        ServerAwayError, ControlError: if the server does not run or does not answer.
    """
    kit = open_server_kit(kit_folder)
    find_superlink_port(kit)
    if resume:
        name = _check_name(name) if name else _newest_run(kit)
    experiment = _load(kit, config, overrides, name if resume else None)
    name = _check_name(name or experiment.name)
    experiment = experiment.model_copy(update={"name": name})
    folder = RunFolder(kit.runs / name)
    _await_readiness(kit)
    with _one_at_a_time(kit), connect(kit) as control:
        going_on = [run for run in control.runs() if not run.ended]
        if going_on:
            fix = "is still running; wait for its end, or end it: ept-fed server stop --run"
            raise InputRefusedError([Problem("run", going_on[0].name or going_on[0].identifier, fix)])
        _prepare_folder(folder, experiment, resume=resume)
        number = control.start(build_bundle(), {RUN_KEY: name})
    if not wait:
        return RunEnd(name, folder.path, "submitted", "it is running; ept-fed server status --watch shows it")
    run = follow(kit, number, lambda: watch(kit, name))
    result = read_json_file(folder.path, "result.json")
    if run.ended == "completed" and result.get("status") == "done":
        return RunEnd(name, folder.path, "done", str(result["ended"]))
    if run.ended == "stopped":
        return RunEnd(name, folder.path, "stopped", "it was stopped; continue with: ept-fed server run --resume")
    return RunEnd(name, folder.path, "failed", str(result.get("ended") or run.details or "see run.log"))


def follow(kit: ServerKit, number: int, watch: Callable[[], None]) -> Run:
    """Wait for the end of a run and return it; a restart of SuperLink in between is tolerated.

    Raises:
        ControlError, ServerAwayError: if SuperLink does not come back, or no longer has the run.
    """
    away_since: float | None = None
    while True:
        try:
            with connect(kit) as control:
                run = next((run for run in control.runs() if run.identifier == number), None)
        except (ControlError, ServerAwayError):
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > _MAX_UNANSWERED:
                raise
        else:
            away_since = None
            if run is None:
                raise ControlError("SuperLink no longer has the run")
            if run.ended:
                watch()
                return run
        watch()
        time.sleep(_POLL_SECONDS)


def end_run(kit_folder: Path) -> str | None:
    """End the current run; return its name, or None if there is none.

    Raises:
        ServerAwayError, ControlError: if the server does not run or declines.
    """
    kit = open_server_kit(kit_folder)
    with connect(kit) as control:
        for run in control.runs():
            if not run.ended:
                control.stop(run.identifier)
                return run.name or str(run.identifier)
    return None


@contextmanager
def connect(kit: ServerKit) -> Iterator[Control]:
    """Connect to the SuperLink of the kit's running server.

    Raises:
        ServerAwayError: if the server does not run.
    """
    with open_control(find_superlink_port(kit), kit.folder / "tls" / "ca.crt") as control:
        yield control


def _await_readiness(kit: ServerKit) -> None:
    """Wait until the server is ready for runs.

    Raises:
        ServerAwayError: if it does not run, or is not ready before a time limit.
    """
    end = time.monotonic() + _READY_SECONDS
    find_superlink_port(kit)
    while not is_ready(kit):
        if time.monotonic() >= end:
            raise ServerAwayError(
                f"the server of {kit.folder} is not ready; the output of ept-fed server start contains the reason"
            )
        time.sleep(_POLL_SECONDS / 4)
        find_superlink_port(kit)


def _load(kit: ServerKit, config: Path | None, overrides: Sequence[str], resumed: str | None) -> Experiment:
    if config is None and resumed is None:
        raise InputRefusedError([Problem("CONFIG", "", "is required: an experiment in YAML")])
    if resumed is not None:
        RunFolder(kit.runs / resumed).require_version()
    path = config or kit.runs / str(resumed) / "config.yaml"
    experiment = load_experiment(path, overrides, check=validate_shared)
    sites = sorted(kit.public_keys())
    problems = check_sites(experiment.federation, sites)
    try:
        propose(experiment, sites)
    except InputRefusedError as refusal:
        problems += refusal.problems
    if problems:
        raise InputRefusedError(problems)
    return experiment


def _prepare_folder(folder: RunFolder, experiment: Experiment, *, resume: bool) -> None:
    if not resume:
        if not folder.is_free():
            fix = "already exists; choose another --name, or continue that run: --resume"
            raise InputRefusedError([Problem("--name", folder.path.name, fix)])
        folder.create(experiment.to_yaml())
        return
    problems = folder.check_resumable(experiment)
    if read_json_file(folder.path, "result.json").get("status") == "done":
        problems.append(Problem("--resume", folder.path.name, "is done; start a new run under another --name"))
    if problems:
        raise InputRefusedError(problems)
    (folder.path / "result.json").unlink(missing_ok=True)


def _check_name(name: str) -> str:
    """Return the name of a run if it is also a valid folder name, else raise InputRefusedError."""
    try:
        return _NAME.validate_python(name)
    except ValidationError as error:
        fix = "must be 1 to 64 letters, digits, dots, dashes or underscores"
        raise InputRefusedError([Problem("--name", name, fix)]) from error


def _newest_run(kit: ServerKit) -> str:
    found = sorted(kit.runs.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputRefusedError([Problem("--resume", "", f"there is no run in {kit.runs} yet")])
    return found[-1].parent.name


@contextmanager
def _one_at_a_time(kit: ServerKit) -> Iterator[None]:
    """Block other submissions between the check for a current run and the start of a new one."""
    handle = os.open(kit.state / "submit.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
