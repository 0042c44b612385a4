"""`ept-fed audit attack`: recompute the updates of a finished run, and attack them as the server's operator could."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from client.gate.incoming import measure_change
from client.gate.policy import Policy
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.prompted_vit import PromptedViT
from ept_fed.privacy.attacks.views import View, list_views
from ept_fed.reports.run.read_run import RunResult, read_run
from ept_fed.reports.run.run_folder import site_folder
from ept_fed.run_plan.plan import Plan
from ept_fed.storage.files import write_bytes
from ept_fed.training.loop import TrainingDivergedError
from simulations.attacks.controls import control_inversion, control_membership
from simulations.attacks.crafted_prompts import ask_gate, craft_prompts, read_rules, shorten_step
from simulations.attacks.inversion import BATCHES, attack_inversion, choose_targets, draw_pictures
from simulations.attacks.membership import Candidates, attack_membership, choose_candidates
from simulations.attacks.record import PARTS, AttackRow, write_attack
from simulations.attacks.replay import PlayedRound, Replay, check_replayable, read_prompts
from simulations.engine.reopen_run import reopen_run
from simulations.engine.virtual_sites import VirtualFederation

__all__ = ["attack_run"]

# Receives the current activity and the share of all work that is done.
Watch = Callable[[str, float], None]


def attack_run(
    folder: Path,
    watch: Watch,
    *,
    rounds: Sequence[int] = (),
    sites: Sequence[str] = (),
    steps: int = 16,
    seed: int = 0,
    noise: float = 1.0,
    policy: Path | None = None,
    images: bool = False,
) -> dict[str, Any]:
    """Attack a run, write attack.json and attack.csv into its folder, and return the content of attack.json.

    Args:
        folder: of a finished run.
        watch: receives the progress.
        rounds: rounds whose updates are attacked; if empty, the first and the last. Inversion and crafted prompts use
            only the first of them.
        sites: sites whose updates are attacked; if empty, the first site.
        steps: number of steps of every inversion.
        seed: of candidates, noise and starting points.
        noise: Gaussian noise of one view, in root mean squares of the update.
        policy: a policy.yaml; None for the default rules.
        images: also write attack-<site>-batch-<size>.png, which shows patients' images.

    Raises:
        InputRefusedError: with every problem of the folder, its images and weights, and the arguments.
    """
    started = time.perf_counter()
    rules = read_rules(policy)
    run = read_run(folder)
    if run.report["status"] != "done":
        raise InputRefusedError([Problem("RUN", str(folder), "none of its rounds averaged anything; name another run")])
    watch("loading backbone and images", 0.0)
    federation = reopen_run(run)
    wanted = _choose(run, federation, rounds, sites)
    attack = _Attack(run, federation, federation.plan(), rules, steps, seed, noise, images)
    work = _Work(watch, sum(attack.weigh(site, numbers) for site, numbers in wanted.items()))
    for site, numbers in wanted.items():
        attack.attack_site(site, numbers, work)
    document = {
        "run": federation.experiment.run_id,
        "name": federation.experiment.name,
        "seed": seed,
        "steps": steps,
        "noise": noise,
        "sites": {site: list(numbers) for site, numbers in wanted.items()},
        "sent": list(attack.sent),
        "prompt_change": rules.incoming.prompt_change,
        "replayed": attack.replayed,
        "gate": attack.gate,
        "notes": attack.notes,
        "seconds": round(time.perf_counter() - started, 1),
    }
    # The crafted prompts of a round are played before its own, but the plain attack comes first in the report.
    ordered = sorted(attack.rows, key=lambda row: PARTS.index(row.part))
    return {**write_attack(folder, document, ordered), "folder": str(folder)}


def _choose(
    run: RunResult, federation: VirtualFederation, rounds: Sequence[int], sites: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Return the rounds to attack by site, ascending."""
    problems = check_replayable(federation)
    there, last = tuple(federation.data.sites), len(run.rounds)
    for site in sites:
        if site not in there:
            problems.append(Problem("--sites", site, f"the run has no such site; it has {', '.join(there)}"))
    problems += [
        Problem("--rounds", number, f"the run has rounds 1 to {last}") for number in rounds if not 1 <= number <= last
    ]
    found: dict[str, tuple[int, ...]] = {}
    for site in (sites or there[:1]) if not problems else ():
        trained = [record.round for record in run.rounds if site in record.asked]
        problems += [
            Problem("--rounds", number, f"{site} was not selected to train in it; it was in {trained}")
            for number in rounds
            if number not in trained
        ]
        if not trained:
            problems.append(Problem("--sites", site, "was never selected to train; name another"))
            continue
        found[site] = tuple(sorted(set(rounds or (trained[0], trained[-1]))))
    if problems:
        raise InputRefusedError(problems)
    return found


class _Work:
    """Counts passes over images, which take most of the time."""

    def __init__(self, watch: Watch, total: float) -> None:
        self._watch, self._total, self._done = watch, total, 0.0

    def note(self, what: str, passes: float) -> None:
        self._done += passes
        self._watch(what, min(1.0, self._done / self._total))


@dataclass
class _Attack:
    """The attack on one run, with its results so far."""

    run: RunResult
    federation: VirtualFederation
    plan: Plan
    policy: Policy
    steps: int
    seed: int
    noise: float
    images: bool

    def __post_init__(self) -> None:
        self.rows: list[AttackRow] = []
        self.replayed: list[dict[str, Any]] = []
        self.gate: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.sent = tuple(name for name, _ in self.plan.layout.shapes)
        # A second model, because the sites use the slot's model in turn.
        self.model = self._create_model()
        names = ("prompts", *(("tokens",) if self.model.tokens is not None else ()), "head.weight", "head.bias")
        self.views = list_views(names, self.noise)
        if not self._sent_view():
            self.views.append(View(f"as sent: {' + '.join(self.sent)}", self.sent))

    def weigh(self, site: str, numbers: Sequence[int]) -> float:
        """Return the approximate number of passes over images that the attack on a site takes."""
        training = len(self.federation.data.sites[site].train) * self.federation.experiment.training.epochs
        inverted = sum(size * count for size, count in BATCHES)
        played = training * (numbers[-1] + 2 + numbers[0])
        controls = 2 * sum(size * count for size, count in BATCHES if size == 1)
        searched = inverted * len(self.views) + controls
        return played + 2 * training * (len(numbers) + 3) + 3 * searched * self.steps

    def attack_site(self, site: str, numbers: Sequence[int], work: _Work) -> None:
        """Play a site's rounds up to the last requested one, and attack the requested ones."""
        replay = Replay(self.federation, self.run, site)
        candidates = choose_candidates(self.federation, site, self.seed)
        if not len(candidates.images):
            self.notes.append(f"{site}: its training images share no class with the others; membership is not measured")
        for number in range(1, numbers[-1] + 1):
            if not replay.asked_in(number):
                continue
            if number == numbers[0] and len(candidates.images):
                self._attack_with_crafted_prompts(replay, number, candidates, work)
            played = self._play(replay, number, work)
            if number in numbers and len(candidates.images):
                self._infer_members(played, candidates, work)
            if number == numbers[0]:
                if len(candidates.images):
                    self._control(site, number, candidates, work)
                    (sent,) = self._sent_view()
                    self.rows += control_membership(self.model, played, candidates, sent, seed=self.seed)
                self._invert(played, work)

    def _play(self, replay: Replay, number: int, work: _Work) -> PlayedRound:
        played = replay.play(number)
        self.replayed.append({"site": replay.site, "round": number, "difference": played.difference})
        if played.difference > 0:
            self.notes.append(
                f"the training loss of {replay.site} in round {number} differs from the recorded one by "
                f"{played.difference:.1e}: another machine or thread count, so the update only resembles the one sent"
            )
        work.note(f"{replay.site}: round {number} again", len(self.federation.data.sites[replay.site].train))
        return played

    def _infer_members(self, played: PlayedRound, candidates: Candidates, work: _Work) -> None:
        self.rows += attack_membership(
            self.model, played, candidates, self.views, seed=self.seed, sent=self.sent,
            on_image=lambda count: work.note(f"{played.site}: membership, round {played.round}", count),
        )  # fmt: skip

    def _control(self, site: str, number: int, candidates: Candidates, work: _Work) -> None:
        """Score the same candidates by the update of a site that trained on none of them; far from 0.5 means bias."""
        others = [name for name in self.federation.data.sites if name != site]
        other = next((Replay(self.federation, self.run, name) for name in others), None)
        if other is None or not other.asked_in(number):
            return
        for earlier in range(1, number):
            if other.asked_in(earlier):
                self._play(other, earlier, work)
        played = self._play(other, number, work)
        (view,) = self._sent_view()
        named = View(f"{view.name} of {other.site}", view.tensors)
        rows = attack_membership(self.model, played, candidates, [named], seed=self.seed, part="control")
        self.rows += rows

    def _attack_with_crafted_prompts(self, replay: Replay, number: int, candidates: Candidates, work: _Work) -> None:
        bound = self.policy.incoming.prompt_change
        # The gate compares with the prompts of the previous round, or with the site's own start.
        latest = read_prompts(self.run.folder, self.plan, max(number - 2, 0))
        layout = self.plan.layout
        crafted = craft_prompts(read_prompts(self.run.folder, self.plan, number - 1), layout)
        within = shorten_step(latest, crafted, layout, bound)
        self.gate.append(
            {
                "site": replay.site,
                "round": number,
                "moved": measure_change(crafted, latest, layout),
                "bound": bound,
                "refused": ask_gate(self.policy, latest, crafted, layout, number),
                "refused_within": ask_gate(self.policy, latest, within, layout, number),
            }
        )
        for prompts, payload in (("crafted, gate on", within), ("crafted, gate off", crafted)):
            try:
                played = replay.play(number, payload)
            except TrainingDivergedError as diverged:
                self.notes.append(f"{prompts}: {replay.site} could not train on them ({diverged}), and sends nothing")
                continue
            self.rows += attack_membership(
                self.model, played, candidates, self._sent_view(), seed=self.seed, part="crafted", prompts=prompts,
                sent=self.sent,
                on_image=lambda count: work.note(f"{replay.site}: crafted prompts, round {number}", count),
            )  # fmt: skip

    def _invert(self, played: PlayedRound, work: _Work) -> None:
        spec = self.federation.backbone.input
        for target in choose_targets(self.federation.data.sites[played.site], self.seed):
            size, pictures = target.images.shape[1], []
            for view in self.views:
                what = f"{played.site}: inversion, {view.name}, batch {size}"
                passes = 3.0 * len(target.groups)
                rows, found = attack_inversion(
                    self.model, played, target, view, spec, steps=self.steps, seed=self.seed, sent=self.sent,
                    on_step=partial(work.note, what, passes),
                )  # fmt: skip
                self.rows += rows
                pictures.append(found)
            if size == 1:
                what = f"{played.site}: inversion, positive control"
                self.rows += control_inversion(
                    self.model, played, target, spec, steps=self.steps, seed=self.seed,
                    on_step=partial(work.note, what, 3.0 * len(target.groups)),
                )  # fmt: skip
            if self.images:
                path = self.run.folder / f"attack-{site_folder(played.site)}-batch-{size}.png"
                write_bytes(path, draw_pictures(target, pictures, spec))

    def _sent_view(self) -> list[View]:
        return [view for view in self.views if view.tensors == self.sent and not view.noise]

    def _create_model(self) -> PromptedViT:
        # A copy has a model of its own.
        model = replace(self.federation).slot.model
        if not isinstance(model, PromptedViT):
            raise TypeError("method ept makes a PromptedViT")
        return model
