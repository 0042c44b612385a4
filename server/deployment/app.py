"""The ServerApp of a real deployment, started by the SuperLink of `ept-fed server start` for each submitted run.

It runs the installed code; the app bundle only refers to it. An environment variable names the kit, and the run config
names the run. The run starts at the beginning, or after the last checkpoint if the run folder has one.
"""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from pydantic import TypeAdapter

from ept_fed.config.base import Name
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import Phase
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.reports.run.run_log import log_to_file
from ept_fed.run_plan.plan import Plan
from ept_fed.validation.experiment import validate_shared
from ept_fed.validation.load_experiment import load_experiment
from server.app import create_server_app
from server.deployment.agreement import Agreement, NoAgreementError, agree
from server.deployment.registered_grid import RegisteredGrid
from server.deployment.run_state import RUN_KEY, RunPhase, read_agreement, write_agreement, write_progress, write_result
from server.deployment.server_kit import KIT_VARIABLE, ServerKit, open_server_kit
from server.rounds.checkpoints import CheckpointFolder
from server.rounds.loop import FederationResult, NothingAveragedError
from server.rounds.recorder import RunRecorder

__all__ = ["app"]

_log = logging.getLogger(__name__)
_NAME: TypeAdapter[str] = TypeAdapter(Name)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment in the folder that the run config names.

    Raises:
        InputRefusedError: if the kit, the experiment or the checkpoint is refused.
        NoAgreementError: if the sites do not agree on a plan.
        NothingAveragedError: if no round averaged any reply; Flower then reports the run as failed.
    """
    kit = open_server_kit(Path(os.environ[KIT_VARIABLE]))
    folder = RunFolder(kit.runs / _NAME.validate_python(str(context.run_config[RUN_KEY])))
    with log_to_file(folder.path / "run.log"):
        try:
            _run(grid, context, kit, folder)
        except (InputRefusedError, NoAgreementError, NothingAveragedError) as refusal:
            _log.error("%s", refusal)
            write_result(folder.path, "failed", ended=str(refusal))
            raise
        except Exception:
            _log.exception("the run failed")
            write_result(folder.path, "failed", ended="the server failed; run.log contains the reason")
            raise


def _run(grid: Grid, context: Context, kit: ServerKit, folder: RunFolder) -> None:
    experiment = load_experiment(folder.path / "config.yaml", check=validate_shared)
    named = RegisteredGrid(grid, kit.public_keys())
    agreement = read_agreement(folder.path)
    if agreement is None:
        agreement = _meet(named, experiment, kit, folder)
    plan = agreement.plan
    checkpoints = CheckpointFolder(folder.checkpoints, plan)
    checkpoint = checkpoints.load(folder.read_rounds())
    folder.keep_rounds(len(checkpoint.records) - 1 if checkpoint else 0)
    _log.info("%s: rounds %d to %d", plan.run, len(checkpoint.records) + 1 if checkpoint else 1, plan.rounds)
    results: list[FederationResult] = []
    recorder = _Recorder(plan, folder)
    authority = kit.authority() if plan.secure_sites else None
    server_app = create_server_app(
        plan, recorder, results.append, resume=checkpoint, save=checkpoints.save, authority=authority
    )
    server_app(named, context)
    (result,) = results
    if not result.aggregated_anything:
        raise NothingAveragedError("no round averaged anything; rounds.jsonl contains the reasons")
    recorder.finish()
    write_result(folder.path, "done", ended=result.ended, left_out=agreement.left_out)


def _meet(grid: Grid, experiment: Experiment, kit: ServerKit, folder: RunFolder) -> Agreement:
    sites = tuple(sorted(kit.public_keys()))
    _log.info("waiting for %s", ", ".join(sites))
    nothing: dict[str, dict[str, float]] = {site: {} for site in sites}
    write_progress(folder.path, "waiting for sites", round_number=0, rounds=experiment.federation.rounds, sites=nothing)
    agreement = agree(grid, experiment, sites)
    folder.write_prompts(agreement.plan, 0, agreement.plan.initial)
    write_agreement(folder.path, agreement)
    return agreement


class _Recorder(RunRecorder):
    """A recorder that also updates progress.json with each reply, for `ept-fed server status`."""

    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        super().__init__(plan, folder, _log)
        self._round = 0
        self._sites: dict[str, dict[str, float | int]] = {site: {} for site in plan.sites}
        self._write("rounds")

    def on_site(self, round_number: int, site: str, phase: Phase, metrics: Mapping[str, float]) -> None:
        self._round = round_number
        prefix = "validation_" if phase == "train" else ""
        shown = {"round": round_number, "at": time.time(), "auc": metrics[f"{prefix}auc"]}
        self._sites[site] = {**self._sites[site], **shown} | ({"loss": metrics["loss"]} if phase == "train" else {})
        self._write("rounds")

    def on_payload(self, round_number: int, payload: Vector, seconds: float) -> None:
        super().on_payload(round_number, payload, seconds)
        self._round = round_number
        self._write("rounds")

    def finish(self) -> None:
        """Write that all rounds are finished."""
        self._write("done")

    def _write(self, phase: RunPhase) -> None:
        write_progress(self._folder.path, phase, round_number=self._round, rounds=self._plan.rounds, sites=self._sites)
