"""The federated part of a simulation: rounds over LocalGrid, written to a run folder, new or resumed."""

import logging
from collections.abc import Callable, Mapping
from functools import partial

from cryptography import x509
from flwr.app import Context

from client.gate.interface import GateInterface
from client.in_process_app import create_client_app
from client.requests.respond import SitePart
from client.site.secure_aggregation import SecureRounds
from client.site.site import Site
from client.site.state_store import StateLostError
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.progress import Progress
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import Phase
from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.run_plan.plan import Plan
from ept_fed.storage.checkpoint_file import DamagedCheckpointError
from server.app import create_server_app
from server.rounds.checkpoints import Checkpoint, CheckpointFolder
from server.rounds.loop import FederationResult, RoundObserver
from server.rounds.recorder import RunRecorder
from simulations.engine.local_grid import run_locally
from simulations.engine.pass_through_gate import PassThroughGate
from simulations.engine.throwaway_certificates import certify_sites
from simulations.engine.virtual_sites import VirtualFederation

__all__ = ["QuietObserver", "federate", "find_checkpoint", "run_in_process"]

_log = logging.getLogger(__name__)


class QuietObserver:
    """A `RoundObserver` that does nothing."""

    def on_site(self, round_number: int, site: str, phase: Phase, metrics: Mapping[str, float]) -> None:
        """Ignore a reply."""

    def on_payload(self, round_number: int, payload: Vector, seconds: float) -> None:
        """Ignore a payload."""

    def on_round(self, record: RoundRecord) -> None:
        """Ignore a record."""


def find_checkpoint(plan: Plan, data: str, sites: Mapping[str, Site], folder: RunFolder) -> Checkpoint | None:
    """Return the latest checkpoint of an interrupted run of this plan, or None if it had not finished a round.

    Args:
        plan: of the run.
        data: digest of the images.
        sites: by name; their states must be as recent as the checkpoint.
        folder: of the interrupted run.

    Raises:
        InputRefusedError: for a damaged checkpoint, a checkpoint of another run, or sites whose state is older than it.
    """
    checkpoint = CheckpointFolder(folder.checkpoints, plan, data).load(folder.read_rounds())
    if checkpoint is None:
        return None
    finished = checkpoint.records[-1].round
    trained = {
        name: record.round for record in checkpoint.records for name, entry in record.sites.items() if entry.examples
    }
    problems = []
    for name, site in sites.items():
        try:
            held = site.state_before(finished + 1)
        except (DamagedCheckpointError, StateLostError) as lost:
            problems.append(Problem("--resume", str(folder.path), f"{name}: {lost}; start a new run"))
            continue
        needed = trained.get(name, 0)
        if (held.round if held else 0) < needed:
            fix = f"{name}'s state of round {needed} is gone; start a new run"
            problems.append(Problem("--resume", str(folder.path), fix))
    if problems:
        raise InputRefusedError(problems)
    return checkpoint


def federate(
    federation: VirtualFederation,
    plan: Plan,
    sites: Mapping[str, Site],
    folder: RunFolder,
    progress: Progress,
    *,
    gates: Mapping[str, GateInterface] | None = None,
    resume: Checkpoint | None = None,
    track: Callable[[RoundRecord], None] | None = None,
) -> FederationResult:
    """Run the plan's rounds; write each to the folder when it ends, and pass the same record to `track`.

    Args:
        federation: the inputs of the simulation.
        plan: of the run.
        sites: the sites of the plan, by name.
        folder: of the run.
        progress: receives the events of the run.
        gates: the sites' gates by name; None lets everything pass.
        resume: the checkpoint to continue from; None starts anew.
        track: also receives each round's record.
    """
    progress.on_stage("federated", plan.sites, plan.rounds)
    # The last record of a checkpoint still lacks its evaluation, so its line is written again.
    finished = len(resume.records) - 1 if resume else 0
    folder.keep_rounds(finished)
    if resume is None:
        folder.write_prompts(plan, 0, plan.initial)
    else:
        progress.on_note(f"resuming after round {finished + 1} of {plan.rounds}")
    recorder = _Recorder(plan, folder, progress, track)
    checkpoints = CheckpointFolder(folder.checkpoints, plan, federation.data.digest)
    authority, parts = _take_part(federation, plan, sites, gates or {}, resume.records[-1].round if resume else 0)
    return run_in_process(plan, parts, recorder, resume=resume, save=checkpoints.save, authority=authority)


def run_in_process(
    plan: Plan,
    parts: Mapping[str, SitePart],
    observer: RoundObserver,
    *,
    resume: Checkpoint | None = None,
    save: Callable[[Checkpoint], None] | None = None,
    authority: x509.Certificate | None = None,
) -> FederationResult:
    """Run the plan's rounds with these sites in this process; the other arguments are those of `run_rounds`."""
    results: list[FederationResult] = []

    def find_part(context: Context) -> SitePart:
        return parts[str(context.node_config["site"])]

    server_app = create_server_app(plan, observer, results.append, resume=resume, save=save, authority=authority)
    run_locally(server_app, create_client_app(find_part), plan.sites)
    (result,) = results
    return result


def _take_part(
    federation: VirtualFederation,
    plan: Plan,
    sites: Mapping[str, Site],
    gates: Mapping[str, GateInterface],
    finished: int,
) -> tuple[x509.Certificate | None, dict[str, SitePart]]:
    """Return the authority that certified the sites, if they need it, and each site's part in the run."""
    authority, credentials = certify_sites(plan.secure_sites) if plan.secure_sites else (None, {})
    parts = {}
    for name in plan.sites:
        gate, rounds = gates.get(name, PassThroughGate()), None
        if plan.secure_sites:
            masked = max(finished, gate.secure_rounds(plan.run))
            rounds = SecureRounds(name, partial(credentials.__getitem__, name), masked=masked)
        parts[name] = federation.take_part(sites[name], gate, rounds)
    return authority, parts


_WITHOUT = {
    "train": "trained nothing in",
    "secure aggregation": "did not complete the secure aggregation of",
    "evaluate": "did not evaluate",
}


class _Recorder(RunRecorder):
    """Records rounds, and also passes their numbers to the display and to the trackers."""

    def __init__(
        self, plan: Plan, folder: RunFolder, progress: Progress, track: Callable[[RoundRecord], None] | None
    ) -> None:
        super().__init__(plan, folder, _log)
        self._progress, self._track = progress, track

    def on_site(self, round_number: int, site: str, phase: Phase, metrics: Mapping[str, float]) -> None:
        if phase == "train":
            shown = {"loss": metrics["loss"], "auc": metrics["validation_auc"]}
        else:
            shown = {"auc": metrics["auc"]}
        self._progress.on_site(round_number, site, shown)

    def on_payload(self, round_number: int, payload: Vector, seconds: float) -> None:
        super().on_payload(round_number, payload, seconds)
        self._progress.on_round(round_number, seconds)

    def on_round(self, record: RoundRecord) -> None:
        super().on_round(record)
        if self._track is not None:
            self._track(record)
        for refusal in record.refused:
            did = _WITHOUT[refusal.phase]
            self._progress.on_note(f"{refusal.site} {did} round {record.round}: {refusal.reason}")
        if not record.aggregated:
            self._progress.on_note(f"round {record.round} {record.outcome}")
