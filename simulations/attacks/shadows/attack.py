"""The attack with shadow runs on a finished run: train those that are missing, look at the run, rate the members."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.evaluation.metrics import Array
from ept_fed.privacy.attacks.shadow_ratios import MIN_SHADOWS
from ept_fed.reports.run.read_run import RunResult, read_run
from simulations.attacks.crafted_prompts import read_rules
from simulations.attacks.shadows.attacked_run import look_at_run
from simulations.attacks.shadows.folder import ShadowFolder
from simulations.attacks.shadows.pool import build_pool
from simulations.attacks.shadows.record import write_full_attack
from simulations.attacks.shadows.scores import rate_members
from simulations.attacks.shadows.train import Seen, ShadowTrainer
from simulations.engine.reopen_run import reopen_run
from simulations.engine.virtual_sites import VirtualFederation

__all__ = ["CANDIDATES", "SHADOWS", "TARGETS", "attack_with_shadows"]

SHADOWS = 64
CANDIDATES = 100
TARGETS = 40
_LOOKS = 3
_MANY = 100
# Share of the candidates that must be usable.
_USABLE = 0.9

Watch = Callable[[str, float], None]


def attack_with_shadows(
    folder: Path,
    watch: Watch,
    *,
    shadows: int = SHADOWS,
    jobs: int = 1,
    seed: int = 0,
    policy: Path | None = None,
    targets: int = TARGETS,
) -> dict[str, Any]:
    """Attack a run, write attack-full.json and attack-full.csv into its folder, and return the content of the former.

    The shadow runs are kept in RUN/shadows, so that a command that was interrupted, or one that asks for more of them,
    trains none of them again.

    Args:
        folder: of a finished run of `ept-fed simulate`.
        watch: receives the current activity and the share of the work that is done.
        shadows: number of shadow runs.
        jobs: number of processes that train them.
        seed: of candidates, shadow runs and resamples.
        policy: a policy.yaml, whose bound on prompts limits a malicious server; None for the default rules.
        targets: number of images of the first site for which such a server crafts prompts.

    Raises:
        InputRefusedError: with every problem of the folder, its images and weights, and the arguments.
    """
    started = time.perf_counter()
    bound = read_rules(policy).incoming.prompt_change
    watch("loading backbone and images", 0.0)
    run, trainer, chosen = _prepare(folder, seed)
    usable = _find_usable(trainer, shadows, seed)
    candidates = trainer.pool.candidates
    store = ShadowFolder(
        folder / "shadows",
        {
            "run": trainer.federation.experiment.run_id,
            "data": trainer.federation.data.digest,
            "backbone": trainer.federation.backbone.digest,
            "rounds": list(trainer.rounds),
            "candidates": len(candidates),
            "seed": seed,
        },
    )
    missing = store.missing(shadows)
    finished = shadows - len(missing)
    for number in _train(folder, trainer, store, missing, jobs, seed):
        finished += 1
        watch(f"shadow runs: {finished} of {shadows} (the last one was number {number})", 0.95 * finished / shadows)
    trained = [seen for number in range(shadows) if (seen := store.read(number)) is not None]
    watch("this run again", 0.95)
    notes: list[str] = []
    mine, rows = look_at_run(run, trainer, bound, targets, notes)
    watch("scores", 0.98)
    if len(usable) < len(candidates):
        notes.append(f"{len(candidates) - len(usable)} of {len(candidates)} candidates are in nearly all shadow runs")
    known = (mine.at(usable), [seen.at(usable) for seen in trained], candidates.at(usable))
    rows = [*rate_members(*known, trainer.rounds.index(chosen), seed), *rows]
    document = {
        "run": trainer.federation.experiment.run_id,
        "name": trainer.federation.experiment.name,
        "seed": seed,
        "shadows": len(trained),
        "rounds": list(trainer.rounds),
        "released_round": chosen,
        "candidates": len(candidates),
        "sent": [name for name, _ in trainer.federation.plan().layout.shapes],
        "prompt_change": bound,
        "notes": notes,
        "seconds": round(time.perf_counter() - started, 1),
    }
    return {**write_full_attack(folder, document, rows), "folder": str(folder)}


def _prepare(folder: Path, seed: int) -> tuple[RunResult, ShadowTrainer, int]:
    """Return the run, what trains shadow runs of it, and the released round."""
    run = read_run(folder)
    if run.report["status"] != "done":
        raise InputRefusedError([Problem("RUN", str(folder), "none of its rounds averaged anything; name another run")])
    federation = reopen_run(run)
    last = len(run.rounds)
    chosen = int(run.report.get("chosen_round") or last)
    rounds = sorted({-(-last * look // _LOOKS) for look in range(1, _LOOKS + 1)} | {chosen})
    trainer = ShadowTrainer(federation, build_pool(federation, seed=seed, most=CANDIDATES), rounds, seed)
    problems = _check(federation, trainer)
    if problems:
        raise InputRefusedError(problems)
    return run, trainer, chosen


def _check(federation: VirtualFederation, trainer: ShadowTrainer) -> list[Problem]:
    problems = []
    if federation.experiment.shared_statistics is not None:
        fix = (
            "class statistics need no shadow runs: use python -m simulations.probes.class_statistics (docs/attacks.md)"
        )
        problems.append(Problem("federation.statistics", federation.experiment.shared_statistics, fix))
    if not len(trainer.pool.candidates):
        fix = "the run's training images share no class with images of other patients, so there are no candidates"
        problems.append(Problem("data", federation.experiment.data.source, fix))
    return problems


def _find_usable(trainer: ShadowTrainer, shadows: int, seed: int) -> Array:
    """Return the places of the candidates that are in, and out of, enough shadow runs; refuse if these are too few.

    Patients with several images make the odds of a draw uneven, so a candidate may be in nearly all shadow runs.
    """
    pool = trainer.pool
    drawn = np.stack([pool.membership(pool.draw(seed, number)) for number in range(max(shadows, _MANY))])

    def usable(count: int) -> Array:
        inside = drawn[:count].sum(axis=0)
        # One more than the attack needs, since each shadow run is left out in turn.
        return np.flatnonzero(np.minimum(inside, count - inside) > MIN_SHADOWS)

    found = usable(shadows)
    if len(found) >= _USABLE * drawn.shape[1]:
        return found
    counts = range(shadows + 1, len(drawn))
    needed = next((count for count in counts if len(usable(count)) >= _USABLE * drawn.shape[1]), len(drawn))
    fix = f"every image must be in, and out of, {MIN_SHADOWS + 1} shadow runs; use at least {needed}"
    raise InputRefusedError([Problem("--shadows", shadows, fix)])


def _train(
    folder: Path, trainer: ShadowTrainer, store: ShadowFolder, missing: Sequence[int], jobs: int, seed: int
) -> Iterator[int]:
    """Train shadow runs, and yield their numbers as they are finished."""
    if jobs == 1 or len(missing) < 2:
        for number in missing:
            store.write(number, trainer.train(number))
            yield number
        return
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_open, initargs=(folder, seed, threads)) as pool:
        try:
            waiting = {pool.submit(_train_one, number): number for number in missing}
            for done in as_completed(waiting):
                store.write(waiting[done], done.result())
                yield waiting[done]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_trainers: list[ShadowTrainer] = []


def _open(folder: Path, seed: int, threads: int) -> None:
    """Load the run in a process of its own."""
    torch.set_num_threads(threads)
    _trainers.append(_prepare(folder, seed)[1])


def _train_one(number: int) -> Seen:
    return _trainers[0].train(number)
