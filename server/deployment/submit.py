"""Submit a run to the server of a kit, follow it, end it; one at a time, and with a true verdict."""

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
from server.deployment.control import Control, ControlError, Run, open_control
from server.deployment.flower_bundle import build_bundle
from server.deployment.readiness import is_ready
from server.deployment.run_state import RUN_KEY, read_json_file
from server.deployment.server_kit import ServerKit, open_server_kit
from server.deployment.service import ServerAwayError, find_superlink_port

__all__ = ["RunEnd", "connect", "end_run", "follow", "run_experiment"]

_POLL_SECONDS = 1.0
_MAX_UNANSWERED = 30.0
_READY_SECONDS = 60.0
_NAME: TypeAdapter[str] = TypeAdapter(Name)


@dataclass(frozen=True)
class RunEnd:
    """How a run ended, or that it goes on without anybody following; `ended` says why."""

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
        kit_folder: of the running server.
        config: the experiment; None only with `resume`, for the settings that the run began with.
        overrides: `key.path=value` strings.
        name: of the run and its folder; None takes the experiment's, or with `resume` the newest run's.
        resume: go on after the last checkpoint of a run that was cut off.
        wait: follow it; otherwise return as soon as it is submitted.
        watch: called about once a second while it goes on.

    Raises:
        InputRefusedError: for settings, a taken name, or a run that goes on already.
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
            fix = "goes on; wait for its end, or end it: ept-fed server stop --run"
            raise InputRefusedError([Problem("run", going_on[0].name or going_on[0].identifier, fix)])
        _prepare_folder(folder, experiment, resume=resume)
        number = control.start(build_bundle(), {RUN_KEY: name})
    if not wait:
        return RunEnd(name, folder.path, "submitted", "it goes on; ept-fed server status --watch shows it")
    run = follow(kit, number, lambda: watch(kit, name))
    result = read_json_file(folder.path, "result.json")
    if run.ended == "completed" and result.get("status") == "done":
        return RunEnd(name, folder.path, "done", str(result["ended"]))
    if run.ended == "stopped":
        return RunEnd(name, folder.path, "stopped", "it was stopped; go on with: ept-fed server run --resume")
    return RunEnd(name, folder.path, "failed", str(result.get("ended") or run.details or "see run.log"))


def follow(kit: ServerKit, number: int, watch: Callable[[], None]) -> Run:
    """Wait for the end of a run; a SuperLink that is being started again is waited for.

    Raises:
        ControlError, ServerAwayError: if it stays away, or does not know the run any more.
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
                raise ControlError("SuperLink does not know the run any more")
            if run.ended:
                watch()
                return run
        watch()
        time.sleep(_POLL_SECONDS)


def end_run(kit_folder: Path) -> str | None:
    """End the run that goes on; return its name, None if there is none.

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
        ServerAwayError: if it does not run.
    """
    with open_control(find_superlink_port(kit), kit.folder / "tls" / "ca.crt") as control:
        yield control


def _await_readiness(kit: ServerKit) -> None:
    """Wait while the server is being started.

    Raises:
        ServerAwayError: if it does not run, or does not get ready.
    """
    end = time.monotonic() + _READY_SECONDS
    find_superlink_port(kit)
    while not is_ready(kit):
        if time.monotonic() >= end:
            raise ServerAwayError(f"the server of {kit.folder} is not ready; its own output says why")
        time.sleep(_POLL_SECONDS / 4)
        find_superlink_port(kit)


def _load(kit: ServerKit, config: Path | None, overrides: Sequence[str], resumed: str | None) -> Experiment:
    if config is None and resumed is None:
        raise InputRefusedError([Problem("CONFIG", "", "is needed: an experiment in YAML")])
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
            fix = "was run already; give this one another --name, or go on with it: --resume"
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
    """Return the name of a run; it becomes a folder's."""
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
    """Hold off another submission between the question whether a run goes on and the start of this one."""
    handle = os.open(kit.state / "submit.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
