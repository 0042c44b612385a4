"""The report of `ept-fed site report`: the benefit of the federation for a site, computed at the site.

No data leaves the site. The worker receives only a status query, and its files are only read. The report writes the
states of the site's local model, in state/<run>/local, and its own folder.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from client.deployment.service import describe_site
from client.gate.open_gate import LEDGER_FILE, read_site_key
from client.gate.privacy_budget import BUDGET_FILE, BudgetBrokenError, Charged, read_budget
from client.report.gallery import collect_errors
from client.report.privacy_spent import describe_charges, is_silent
from client.report.report_folder import check_own_folder, fill_own_folder
from client.report.run_summary import describe_run
from client.report.traffic import count_passages, count_rounds, describe_rounds, list_passages, read_ledger_passages
from client.site.assessment import assess_settings, load_federated, release
from client.site.candidates import SiteLoader
from client.site.local_baseline import describe_local_training, train_locally
from client.site.run_record import Received
from client.site.run_registry import RunRegistry
from client.site.site import Site
from client.site.state_store import StateFolder, StateLostError, StateMemory, StateStore
from client.worker.site_cache import WarmSite
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.progress import Progress
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.protocol.proposal import Proposal
from ept_fed.reports.pages.write_reports import WrittenReports, make_reports
from ept_fed.reports.run.comparison import Comparison
from ept_fed.reports.run.read_run import read_run
from ept_fed.reports.run.run_document import SiteTraffic
from ept_fed.reports.run.run_folder import RunFolder, site_folder
from ept_fed.reports.run.training_record import describe_federated_training
from ept_fed.storage.checkpoint_file import DamagedCheckpointError
from ept_fed.validation.load_site import SiteSettings, check_site, join_proposal, load_site_settings

__all__ = ["report_site"]


@dataclass(frozen=True)
class _Participation:
    """The worker's files of one run."""

    run: str
    proposal: Proposal
    received: Received
    states: StateStore

    @property
    def round(self) -> int:
        """Round of the prompts that the site received last."""
        return min(self.received.prompts_of, self.proposal.federation.rounds)


def report_site(
    kit: Path, progress: Progress, *, run: str | None = None, out: Path | None = None, gallery: bool = True
) -> dict[str, Any]:
    """Write a site's own report on a run into a run folder, and return a summary.

    The site's local model is trained for the rounds of the run, unless an earlier report has done so. Then every
    setting is assessed on the site's own validation and test images, as in a simulation.

    Args:
        kit: folder of the site's kit.
        progress: receives the progress.
        run: name of the run, or its beginning; None selects the run that the site agreed to last.
        out: folder of the report; None means KIT/reports/<run>.
        gallery: whether the page contains pictures of the most confident errors.

    Raises:
        InputRefusedError: if there is no run or no received prompts, if images or weights differ from those of the run,
            or if files are damaged.
    """
    settings = load_site_settings(kit / "site.yaml")
    problems = check_site(settings)
    if problems:
        raise InputRefusedError(problems)
    found = _find_participation(settings, run, progress)
    folder = out or kit / "reports" / found.run
    problems = check_own_folder(folder, found.run)
    if problems:
        raise InputRefusedError(problems)
    if settings.worker.threads is not None:
        torch.set_num_threads(settings.worker.threads)
    warm = WarmSite(settings)
    site = warm.open(found.run, found.proposal, found.states)
    _require_same(found.received, site, warm.data.digest, settings)
    for note in warm.data.notes:
        progress.on_note(note)
    _tell_about_worker(kit, found.run, progress)
    experiment = join_proposal(settings, found.proposal)
    local = RunRegistry(settings.worker.state, settings.site).local(found.run)
    with _lock(local):
        # The states depend on images and weights, so these are part of the identity of the states.
        alone_on = f"{found.run}, alone, {warm.data.digest[:16]}, {found.received.backbone_digest[:16]}"
        alone = warm.open(found.run, found.proposal, StateFolder(local, run=alone_on, site=settings.site))
        try:
            train_locally(
                {site.name: alone},
                experiment.training,
                experiment.federation.rounds,
                progress,
                patience=experiment.federation.patience,
                tolerance=experiment.federation.round_tolerance,
            )
        except DamagedCheckpointError as broken:
            fix = f"{broken}; remove this folder, and the local model is trained again"
            raise InputRefusedError([Problem("state", str(local), fix)]) from broken
        with fill_own_folder(folder) as staged:
            loaders = load_federated(site, found.received.payload, experiment, progress.on_note)
            _write_run(staged, kit, settings, found, experiment, warm, site, alone, loaders)
            pictures = None
            if gallery:
                released = staged / "sites" / site_folder(site.name) / "model.safetensors"
                test = read_run(staged).sites[site.name].test
                pictures = {site.name: collect_errors(warm.slot, released, site.data.test, test, warm.data.classes)}
            written = make_reports(staged, site=site.name, gallery=pictures)
    return _summarise(folder, found, written, site.name)


def _find_participation(settings: SiteSettings, run: str | None, progress: Progress) -> _Participation:
    registry = _open_registry(settings)
    name = _choose_run(registry.names(), run, settings, progress)
    try:
        proposal, received = registry.find(name), registry.record(name).read_received()
        if received is None or received.prompts_of < 1:
            fix = "has not sent any prompts to this site yet; make the report after its first round"
            raise InputRefusedError([Problem("--run", name, fix)])
        state = registry.states(name).after(received.prompts_of)
    except (MessageRefusedError, DamagedCheckpointError, StateLostError) as broken:
        fix = f"{broken}; the report requires it: restore it from your backup of state/"
        raise InputRefusedError([Problem("--run", name, fix)]) from broken
    # A copy, because the worker may continue training and would replace the state that belongs to these prompts.
    states = StateMemory()
    if state is not None:
        states.save(state)
    return _Participation(name, proposal, received, states)


def _open_registry(settings: SiteSettings) -> RunRegistry:
    state = settings.worker.state
    if not state.is_dir():
        fix = "does not exist, so this site has taken part in no run yet; see ept-fed site status"
        raise InputRefusedError([Problem("worker.state", str(state), fix)])
    if not os.access(state, os.R_OK | os.W_OK | os.X_OK):
        fix = "cannot be opened; run this command as the worker's user"
        raise InputRefusedError([Problem("worker.state", str(state), fix)])
    return RunRegistry(state, settings.site)


def _choose_run(names: tuple[str, ...], wanted: str | None, settings: SiteSettings, progress: Progress) -> str:
    if not names:
        fix = "contains no run: this site has taken part in none yet; see ept-fed site status"
        raise InputRefusedError([Problem("worker.state", str(settings.worker.state), fix)])
    if wanted is None:
        if len(names) > 1:
            progress.on_note(f"reporting on run {names[0]}, the latest; earlier runs: {', '.join(names[1:])}")
        return names[0]
    meant = [name for name in names if name == wanted] or [name for name in names if name.startswith(wanted)]
    if len(meant) == 1:
        return meant[0]
    fix = f"could be {', '.join(meant)}; name one" if meant else f"is not a run of this site: {', '.join(names)}"
    raise InputRefusedError([Problem("--run", wanted, fix)])


def _require_same(received: Received, site: Site, data_digest: str, settings: SiteSettings) -> None:
    """Raise InputRefusedError if backbone, data or layout differ from those at the time the prompts were received."""
    problems = []
    if site.backbone_digest != received.backbone_digest:
        fix = f"are other weights than in the run: {site.backbone_digest}, not {received.backbone_digest}"
        problems.append(Problem("model.weights", settings.model.weights, f"{fix}; set those of the run in site.yaml"))
    if data_digest != received.data_digest:
        fix = "contains other images or labels than in the run, so the models are not comparable"
        problems.append(Problem("data.root", str(settings.data.root), f"{fix}; restore the images of the run"))
    if not problems and site.layout.hash != received.layout_hash:
        fix = f"differs from the layout that this version derives ({site.layout.hash}); use the run's version"
        problems.append(Problem("received prompts", received.layout_hash, fix))
    if problems:
        raise InputRefusedError(problems)


def _tell_about_worker(kit: Path, run: str, progress: Progress) -> None:
    _, worker = describe_site(kit)
    if worker is not None and worker.run == run and worker.activity != "idle":
        progress.on_note(
            f"the worker is busy with this run (round {worker.round}); it and the report share the machine"
        )


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Make the folder of the local model's states, and lock it against other reports on this run."""
    folder.mkdir(mode=0o700, exist_ok=True)
    with os.fdopen(os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            fix = "is in use: another report on this run is in progress; wait for its end"
            raise InputRefusedError([Problem("state", str(folder), fix)]) from error
        yield


def _write_run(
    staged: Path,
    kit: Path,
    settings: SiteSettings,
    found: _Participation,
    experiment: Experiment,
    warm: WarmSite,
    site: Site,
    alone: Site,
    federated: Mapping[str, SiteLoader],
) -> None:
    """Write all files that `read_run` requires, for this site only."""
    folder, model = RunFolder(staged), warm.slot.model
    loaders = {"local": alone.hold, **federated}
    folder.create(experiment.to_yaml())
    assessed = assess_settings(site.data, loaders, experiment)
    folder.write_site_model(site.name, *release(assessed, loaders, experiment))
    folder.write_predictions(site.name, assessed.rows, warm.data.classes, assessed.subgroups)

    answers, damaged = RunRegistry(settings.worker.state, site.name).record(found.run).read_answers()
    ledger = settings.worker.state / LEDGER_FILE
    passages = read_ledger_passages(ledger, read_site_key(kit).public_key(), found.run) if ledger.exists() else ()
    counted_by = "ledger" if passages else "worker"
    passages = passages or list_passages(answers)
    rounds = describe_rounds(site.name, max(found.round, count_rounds(answers)), answers, passages)
    for record in rounds:
        folder.write_round(record)
    counted = count_passages(passages, counted_by)
    comparison = Comparison(
        settings=tuple(assessed.metrics),
        metrics={setting: {site.name: values} for setting, values in assessed.metrics.items()},
        test_images={site.name: len(site.data.test)},
        traffic={
            site.name: SiteTraffic(counted["bytes_to_site"], counted["bytes_from_site"], counted["largest_update"])
        },
        choices={} if assessed.choice is None else {site.name: assessed.choice.to_json()},
    )
    over = found.received.chosen or found.round == experiment.federation.rounds
    limits = [*warm.data.thinned.values(), *_describe_own_limits(found, over=over, damaged=damaged)]
    report = describe_run(
        experiment,
        run=found.run,
        status="done",
        chosen=found.round if over else None,
        ended="not known at the site" + ("" if over else f"; it received the prompts of round {found.round} last"),
        classes=warm.data.classes,
        backbone=model.backbone,
        layout=site.layout,
        data=[{**row, "site": site.name} for row in warm.data.summary()],
        notes=warm.data.notes,
        limits={site.name: limits},
        training={
            "federated": {site.name: describe_federated_training(rounds, site.name, found.round)},
            "local": {site.name: describe_local_training(alone)},
        },
        device=model.device,
    )
    privacy = {site.name: describe_charges(_read_charges(settings), found.run, silent=is_silent(experiment))}
    own = {"round": found.round, "counted": counted, "privacy": privacy, **comparison.to_json()}
    folder.write_report(report | own, comparison.rows())


def _read_charges(settings: SiteSettings) -> tuple[Charged, ...]:
    path = settings.worker.state / BUDGET_FILE
    try:
        return read_budget(path)
    except (BudgetBrokenError, OSError) as error:
        fix = f"cannot be used ({error}); inspect it before any further private training"
        raise InputRefusedError([Problem(BUDGET_FILE, str(path), fix)]) from error


def _describe_own_limits(found: _Participation, *, over: bool, damaged: int) -> list[str]:
    limits = [
        "This report was written at the site. The site has no information whether the server averaged its updates; "
        "rounds in which it trained count as averaged.",
        "The check that the images are those of the run compares their names and labels, not their pixels.",
    ]
    if not over:
        limits.append(
            f"The federated prompts are those of round {found.round}, which may not be the last, but the site's local "
            f"model was trained for up to {found.proposal.federation.rounds} rounds."
        )
    if damaged:
        limits.append(f"{damaged} lines of the worker's record cannot be read and are missing in rounds and bytes.")
    return limits


def _summarise(folder: Path, found: _Participation, written: WrittenReports, site: str) -> dict[str, Any]:
    headline = written.headlines[site]
    page = folder / "sites" / site_folder(site)
    return {
        "schema": 1,
        "status": "done",
        "site": site,
        "run": found.run,
        "round": found.round,
        "rounds": found.proposal.federation.rounds,
        "verdict": headline.verdict,
        "sentence": headline.sentence,
        "details": list(headline.details),
        "folder": str(folder),
        "page": str(page / "report.html"),
        "files": [str(page / path.name) for path in written.files],
    }
