"""`ept-fed simulate`: a federation of virtual sites in this process, its baselines, and their comparison."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from client.report.privacy_spent import describe_private_rounds
from client.report.run_summary import describe_run
from client.site.site import Site
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.progress import Progress
from ept_fed.reports.pages.write_reports import make_reports
from ept_fed.reports.run.comparison import Comparison
from ept_fed.reports.run.cross_site import write_cross_site
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.reports.run.run_log import log_to_file
from ept_fed.run_plan.make_plan import min_agreeing_sites
from ept_fed.run_plan.plan import Plan
from ept_fed.tracking.registry import check_writers
from ept_fed.tracking.scalars import describe_settings
from ept_fed.tracking.tracker import Tracker
from ept_fed.tracking.writer import TrackedRun
from server.rounds.loop import FederationResult
from simulations.engine.compare import Setting, compare_settings, describe_training, prepare_settings
from simulations.engine.cross_site import assess_cross_site
from simulations.engine.federate import federate, find_checkpoint
from simulations.engine.gallery import collect_gallery
from simulations.engine.virtual_gates import check_policy, introduce_sites, open_gates
from simulations.engine.virtual_sites import VirtualFederation, check_names, prepare_federation

__all__ = ["simulate"]


def simulate(
    experiment: Experiment,
    out: Path,
    progress: Progress,
    *,
    resume: bool = False,
    track: Sequence[str] = (),
    policy: Path | None = None,
) -> Mapping[str, Any]:
    """Run an experiment into the folder `out` and return its report.

    Args:
        experiment: validated settings.
        out: run folder; must be empty or absent. It is created only after all checks have passed.
        progress: receives the events of the run.
        resume: continue an interrupted run of the same settings in `out`; of a finished run, only return the report.
        track: names of `ept_fed.tracking.registry.WRITERS` that also receive each round's numbers.
        policy: policy file of a site's gate; every virtual site then has a gate with it, see
            `simulations.engine.virtual_gates`. None lets everything pass.

    Returns:
        The content of report.json, and the `verdicts` of its pages by site; `status` is "failed" if no round averaged
        anything.

    Raises:
        InputRefusedError: with every problem of data, model, policy and folder.
    """
    # Flower logs each phase at INFO; the run's own display already shows the same.
    logging.getLogger("flwr").setLevel(logging.WARNING)
    started = time.perf_counter()
    folder = RunFolder(out)
    resume = resume and not folder.is_free()
    problems = folder.check_resumable(experiment) if resume else folder.check_free()
    problems += check_writers(track) + check_policy(policy, folder.gates, resume=resume)
    if resume and not problems and (finished := folder.read_finished()) is not None:
        folder.drop_states()
        return {**finished, "rows": Comparison.from_json(finished).rows(), "folder": str(out)}
    federation = _prepare(experiment, folder, problems, gated=policy is not None)
    sites = {
        name: federation.create_site(data, federation.keep_states(folder, "federated", name))
        for name, data in federation.data.sites.items()
    }
    if not resume:
        folder.create(experiment.to_yaml())
    with contextlib.ExitStack() as stack:
        if not resume:
            stack.enter_context(log_to_file(out / "run.log"))
        gates = {} if policy is None else stack.enter_context(open_gates(policy, sites, folder.gates))
        refused = introduce_sites(experiment.run_id, federation.proposal, sites, gates) if gates else {}
        agreed = [name for name in sites if name not in refused]
        enough = len(agreed) >= min_agreeing_sites(experiment.federation, len(sites))
        plan = federation.plan(agreed if enough else None)
        checkpoint = None
        if resume:
            taking_part = {name: site for name, site in sites.items() if name in plan.sites}
            checkpoint = find_checkpoint(plan, federation.data.digest, taking_part, folder)
            folder.renew(experiment.to_yaml())
            stack.enter_context(log_to_file(out / "run.log"))
        folder.write_partition(federation.data.partition)
        tracker = stack.enter_context(Tracker(track, out, progress.on_note))
        # As in `federate`: the last record of a checkpoint still lacks its evaluation and is written again.
        entered = folder.read_rounds()[: len(checkpoint.records) - 1] if checkpoint else []
        tracker.start(TrackedRun(experiment.name, experiment.run_id, describe_settings(experiment)), entered)
        notes = [*federation.data.notes, *(f"{name} refuses the run: {reason}" for name, reason in refused.items())]
        for note in notes:
            progress.on_note(note)
        if enough:
            result = federate(
                federation, plan, sites, folder, progress, gates=gates, resume=checkpoint, track=tracker.write_round
            )
        else:
            result = FederationResult(plan.initial, 0, (), f"{len(refused)} of {len(sites)} sites refuse the run")
        report, rows = _compare(federation, plan, sites, result, notes, folder, progress)
        tracker.write_result(rows, done=report["status"] == "done")
    report = {**report, "seconds": round(time.perf_counter() - started, 1)}
    folder.write_report(report, rows)
    verdicts: dict[str, str] = {}
    if report["status"] == "done":
        try:
            headlines = make_reports(out, gallery=collect_gallery(out, federation)).headlines
            folder.drop_states()
            verdicts = {site: headline.verdict for site, headline in headlines.items()}
        except InputRefusedError as refusal:
            # The run itself is done and on disk, so a problem with its pages must not look like a refused run.
            progress.on_note(f"no report pages: {refusal}")
    return {**report, "rows": rows, "verdicts": verdicts, "folder": str(out)}


def _compare(
    federation: VirtualFederation,
    plan: Plan,
    sites: Mapping[str, Site],
    result: FederationResult,
    notes: Sequence[str],
    folder: RunFolder,
    progress: Progress,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train the baselines, compare everything, and return the report and its table."""
    experiment = federation.experiment
    settings: dict[str, Setting] = {}
    if result.aggregated_anything:
        for site in sites.values():
            site.select_round(result.chosen)
        settings = prepare_settings(federation, sites, result.payload, folder, progress)
    comparison = compare_settings(federation, settings, result, folder)
    if experiment.evaluation.cross_site and settings:
        write_cross_site(folder.path, assess_cross_site(federation.data.sites, settings["local"].load))
    report = describe_run(
        experiment,
        run=plan.run,
        status="done" if result.aggregated_anything else "failed",
        chosen=result.chosen if result.aggregated_anything else None,
        ended=result.ended,
        classes=federation.data.classes,
        backbone=federation.backbone,
        layout=plan.layout,
        data=federation.data.summary(),
        notes=notes,
        limits=_list_limits(federation, plan),
        training=describe_training(settings, result, sites),
        device=federation.device,
    )
    privacy = {
        name: describe_private_rounds(
            experiment,
            len(data.train),
            sum(name in record.sites and record.sites[name].examples > 0 for record in result.rounds),
        )
        for name, data in federation.data.sites.items()
    }
    return {**report, "privacy": privacy, **comparison.to_json()}, comparison.rows()


def _list_limits(federation: VirtualFederation, plan: Plan) -> dict[str, list[str]]:
    """Return what a reader of each site's numbers has to know."""
    limits = {name: [sentence] for name, sentence in federation.data.thinned.items()}
    for name in federation.data.sites:
        if name not in plan.sites:
            fix = "its policy refuses the run: it trained nothing in it, and its federated model is the others' prompts"
            limits.setdefault(name, []).append(fix)
    return limits


def _prepare(experiment: Experiment, folder: RunFolder, problems: list[Problem], *, gated: bool) -> VirtualFederation:
    """Load data and model, and raise their problems together with those already found."""
    try:
        federation = prepare_federation(experiment, cache=folder.prefixes)
    except InputRefusedError as refusal:
        raise InputRefusedError([*problems, *refusal.problems]) from refusal
    if gated:
        problems += check_names(federation.data.sites)
    if problems:
        raise InputRefusedError(problems)
    return federation
