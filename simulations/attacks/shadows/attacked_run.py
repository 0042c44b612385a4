"""What an attacker sees in the attacked run itself, and the attacks on it that need no shadow runs."""

from functools import partial

import numpy as np

from ept_fed.errors import Problem
from ept_fed.evaluation.metrics import Array
from ept_fed.privacy.attacks.shadow_ratios import compare_with_other_sites
from ept_fed.reports.run.read_run import RunResult
from simulations.attacks.replay import Replay, check_replayable, read_prompts
from simulations.attacks.shadows.record import FullRow
from simulations.attacks.shadows.scores import CRAFTED, OTHER_SITES, RUN, UPDATES, rate
from simulations.attacks.shadows.targeted import Targeted, choose_targets, seek_images
from simulations.attacks.shadows.train import Seen, ShadowTrainer

__all__ = ["look_at_run"]

_MAX_OTHER_SITES = 4


def look_at_run(
    run: RunResult, trainer: ShadowTrainer, bound: float, targets: int, notes: list[str]
) -> tuple[Seen, list[FullRow]]:
    """Return what the attacker sees in the run itself, and the rows of the attacks that need no shadow runs."""
    federation, pool = trainer.federation, trainer.pool
    plan, candidates = federation.plan(), pool.candidates
    average = np.stack([trainer.margins(plan, read_prompts(run.folder, plan, number)) for number in trainer.rounds])
    own, rows = np.full_like(average, np.nan), []
    problems = check_replayable(federation, gradients=False)
    if federation.experiment.training.privacy is not None:
        problems.append(Problem("training.privacy", "on", "its noise cannot be drawn again"))
    if problems:
        reasons = "; ".join(f"{problem.field}: {problem.fix}" for problem in problems)
        notes.append(f"the sites' own updates of this run cannot be computed again ({reasons})")
    else:
        updates, targeted = _replay(run, trainer, bound, targets, notes)
        for index in range(len(updates)):
            chosen = candidates.site == index
            own[:, chosen] = updates[index][:, chosen]
        if np.isnan(own).any():
            notes.append("a site was not asked in a round that is looked at, so its own updates are left out")
        elif len(updates) > 2:
            rows.append(_rate_by_other_sites(updates, trainer))
        if targeted is not None:
            rows += _rate_targeted(targeted, trainer)
    return Seen(candidates.member, average, own, trainer.memorise(pool.trained)), rows


def _replay(
    run: RunResult, trainer: ShadowTrainer, bound: float, targets: int, notes: list[str]
) -> tuple[list[Array], Targeted | None]:
    """Return margins (T, n) under the update of each site, NaN for a round in which it was not asked, and the targeted.

    The first site also gets the crafted prompts, in the first round that is looked at.
    """
    found, targeted, plan = [], None, trainer.federation.plan()
    for index, site in enumerate(trainer.federation.data.sites):
        replay, margins, exact = Replay(trainer.federation, run, site), [], True
        for number in range(1, trainer.rounds[-1] + 1):
            asked = replay.asked_in(number)
            if asked and targets and index == 0 and number == trainer.rounds[0]:
                places = choose_targets(trainer, index, targets)
                prompts = partial(read_prompts, run.folder, plan)
                targeted = seek_images(trainer, replay, prompts, places.tolist(), number, bound)
            played = replay.play(number) if asked else None
            exact &= played is None or not played.difference > 0
            if number in trainer.rounds:
                unknown = np.full(len(trainer.pool.candidates), np.nan)
                margins.append(unknown if played is None else trainer.margins(plan, played.payload))
        if not exact:
            notes.append(f"{site}: training losses differ from the recorded ones (another machine or thread count)")
        found.append(np.stack(margins))
    return found, targeted


def _rate_by_other_sites(updates: list[Array], trainer: ShadowTrainer) -> FullRow:
    candidates = trainer.pool.candidates
    scores = np.empty(len(candidates))
    for index in range(len(updates)):
        chosen = candidates.site == index
        others = [updates[other][:, chosen] for other in range(len(updates)) if other != index][:_MAX_OTHER_SITES]
        scores[chosen] = compare_with_other_sites(updates[index][:, chosen], np.stack(others, axis=1))
    return rate("others", RUN, UPDATES, OTHER_SITES, scores[None], candidates.member[None], candidates, trainer.seed)


def _rate_targeted(targeted: Targeted, trainer: ShadowTrainer) -> list[FullRow]:
    candidates = trainer.pool.candidates.at(targeted.places)
    members = candidates.member[None]
    return [
        rate("crafted", RUN, UPDATES, f"{CRAFTED}, {gate}", scores[None], members, candidates, trainer.seed)
        for gate, scores in targeted.corrections.items()
    ]
