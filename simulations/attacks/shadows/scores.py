"""Scores of the candidates by every attack that uses shadow runs, and how well each finds the members."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ept_fed.evaluation.metrics import Array
from ept_fed.privacy.attacks.membership import measure_detections
from ept_fed.privacy.attacks.shadow_ratios import ShadowRuns, ratio_offline, ratio_online
from ept_fed.seeds import numpy_generator
from simulations.attacks.shadows.pool import Candidates
from simulations.attacks.shadows.record import FullRow
from simulations.attacks.shadows.train import Seen

__all__ = [
    "AVERAGES",
    "BUNDLE",
    "CRAFTED",
    "KNOWN",
    "OFFLINE",
    "ONLINE",
    "OTHER_SITES",
    "RUN",
    "THRESHOLD",
    "TURN",
    "UPDATES",
    "rate",
    "rate_members",
]

BUNDLE = "the released prompts"
AVERAGES = "the averages of the rounds"
UPDATES = "a site's own updates, and the averages"
KNOWN = "known: a head that memorised its images"
ONLINE, OFFLINE = "likelihood ratio, online", "likelihood ratio, offline"
THRESHOLD = "one threshold, no shadow runs"
OTHER_SITES = "the other sites' updates (FedMIA)"
CRAFTED = "prompts crafted for one image"
RUN, TURN = "this run", "each shadow run in turn"


@dataclass(frozen=True)
class _View:
    """A part of what an attacker sees, as answers (n, F) for each candidate."""

    name: str
    part: str

    def of(self, seen: Seen, released: int) -> Array:
        if self.name == KNOWN:
            return seen.known[:, None]
        if self.name == BUNDLE:
            return seen.average[released][:, None]
        rounds = seen.average if self.name == AVERAGES else np.concatenate([seen.average, seen.own])
        return rounds.T


_VIEWS = (
    _View(BUNDLE, "membership"),
    _View(AVERAGES, "membership"),
    _View(UPDATES, "membership"),
    _View(KNOWN, "known"),
)


def rate_members(
    run: Seen | None, shadows: Sequence[Seen], candidates: Candidates, released: int, seed: int
) -> Iterator[FullRow]:
    """Yield a row for each view, attack and target.

    Each shadow run is also a target of the attack by the others, which gives many more decisions than one run. With
    members that are drawn at random in place of the true ones, no attack may find anything (part "control").

    Args:
        run: what the attacker saw in the attacked run; None if only shadow runs are targets.
        shadows: his shadow runs.
        candidates: the candidates.
        released: index of the released round among the rounds that were looked at.
        seed: of the control and the resamples.
    """
    for view in _VIEWS:
        runs = ShadowRuns(
            np.stack([view.of(seen, released) for seen in shadows]), np.stack([s.member for s in shadows])
        )
        targets: dict[str, list[tuple[Array, ShadowRuns, Array]]] = {}
        if run is not None and not np.isnan(mine := view.of(run, released)).any():
            targets[RUN] = [(mine, runs, run.member)]
        if runs.without(0).enough:
            targets[TURN] = [
                (runs.seen[number], others, runs.member[number])
                for number in range(len(shadows))
                if (others := runs.without(number)).enough
            ]
        for target, cases in targets.items():
            scores = {
                ONLINE: [ratio_online(seen, others) for seen, others, _ in cases],
                OFFLINE: [ratio_offline(seen, others, candidates.group) for seen, others, _ in cases],
                THRESHOLD: [seen[:, -1] for seen, _, _ in cases],
            }
            truth = np.stack([member for _, _, member in cases])
            for attack, found in scores.items():
                yield rate(view.part, target, view.name, attack, np.stack(found), truth, candidates, seed)
            if view.part == "membership":
                rng = numpy_generator(seed, view.name, target, "control")
                at_random = np.stack([_permute(member, candidates, rng) for member in truth])
                yield rate("control", target, view.name, ONLINE, np.stack(scores[ONLINE]), at_random, candidates, seed)


def _permute(member: Array, candidates: Candidates, rng: np.random.Generator) -> Array:
    """Return a membership (n,) that is permuted within each site and class."""
    found = member.copy()
    for site, label in {*zip(candidates.site.tolist(), candidates.label.tolist(), strict=True)}:
        places = np.flatnonzero((candidates.site == site) & (candidates.label == label))
        found[places] = member[rng.permutation(places)]
    return found


def rate(
    part: str, target: str, view: str, attack: str, scores: Array, member: Array, candidates: Candidates, seed: int
) -> FullRow:
    """Return the row of an attack with scores (S, n) and members (S, n) in S runs; the others are its fields."""
    groups = candidates.group.tolist()
    found = measure_detections(scores, member, groups, numpy_generator(seed, view, attack, target, part))
    return FullRow(
        part, view, attack, target, len(scores), int(member.sum()), int((~member).sum()),
        found.auc.value, found.auc.low, found.auc.high,
        found.at_1.value, found.at_1.low, found.at_1.high,
        found.at_01.value, found.at_01.low, found.at_01.high,
    )  # fmt: skip
