"""Replay of a finished run: recompute what a site sent in each round.

A run folder keeps the global prompts after each round, not what each site sent. Every random choice of a round
derives from (seed, site, round), so a site that gets the same prompts trains to the same payload, bit for bit, on the
machine and with the thread count of the run. The recorded training loss of each round shows whether it did.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from client.site.site import Site
from client.site.state_store import Tensors, capture_model
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.layout import PayloadMismatchError, Vector
from ept_fed.protocol.messages import Header, RoundRequest
from ept_fed.reports.run.read_run import RunResult
from ept_fed.reports.run.round_record import SiteExchange
from ept_fed.run_plan.plan import Plan
from simulations.engine.virtual_sites import VirtualFederation

__all__ = ["PARAMETERS", "PlayedRound", "Replay", "check_replayable", "read_prompts"]

# Names of the trained tensors in a payload, with the names of the model's parameters.
PARAMETERS = {
    "prompts": "embedded.prompts",
    "tokens": "embedded.tokens",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}
# Strategies whose corrections come from server state that a finished run does not keep.
_CORRECTING = ("scaffold", "feddyn")
_FAR_OFF = 0.01


@dataclass(frozen=True)
class PlayedRound:
    """A replayed round of one site.

    Attributes:
        site: its name.
        round: from 1.
        before: the site's trained tensors, including the received payload, by names of `PARAMETERS`.
        after: the same after training.
        payload: the payload that the site sends.
        difference: relative difference of its training loss from the recorded one; 0 if equal bit for bit, NaN if the
            run recorded none or if the prompts were not those of the run.
    """

    site: str
    round: int
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    payload: Vector
    difference: float


def check_replayable(federation: VirtualFederation, *, gradients: bool = True) -> list[Problem]:
    """Return a problem for each setting of a run because of which its updates cannot be recomputed or attacked.

    Attacks that need gradients of the payload support fewer methods.
    """
    experiment, found = federation.experiment, []
    if gradients and (experiment.model.method != "ept" or experiment.model.embedding != "concat"):
        fix = "the attack supports only prompts that fold; attack a run of method ept with embedding concat"
        found.append(Problem("model.method", f"{experiment.model.method} ({experiment.model.embedding})", fix))
    if experiment.federation.strategy in _CORRECTING:
        fix = "the run folder lacks the server's corrections of each site's loss; attack a run of fedavg"
        found.append(Problem("federation.strategy", experiment.federation.strategy, fix))
    if experiment.shared_statistics is not None:
        fix = "class statistics are not a training update, and are not attacked here; see docs/privacy.md"
        found.append(Problem("federation.statistics", experiment.shared_statistics, fix))
    if experiment.federation.site_privacy is not None:
        fix = "its noise cannot be drawn again; attack the run without it to see what the noise hides"
        found.append(Problem("federation.site_privacy", "on", fix))
    return found


def read_prompts(folder: Path, plan: Plan, round_number: int) -> Vector:
    """Return the global payload after a round.

    Raises:
        InputRefusedError: for a file that is missing, damaged or of another run.
    """
    path = folder / "prompts" / f"round-{round_number:03d}.safetensors"
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {}).get("ept_fed", "{}"))
            payload = plan.layout.flatten({name: file.get_tensor(name) for name, _ in plan.layout.shapes})
        plan.layout.check(payload)
    except (OSError, SafetensorError, PayloadMismatchError, ValueError) as error:
        raise InputRefusedError([Problem("prompts", str(path), f"cannot be used ({error}); restore it")]) from error
    wanted = {"run": plan.run, "round": round_number, "layout_hash": plan.layout.hash}
    differing = [name for name, value in wanted.items() if about.get(name) != value]
    if differing:
        fix = f"its {', '.join(differing)} differ from what config.yaml makes; restore both"
        raise InputRefusedError([Problem("prompts", str(path), fix)])
    return payload


class Replay:
    """One site of a finished run, trained again round by round."""

    def __init__(self, federation: VirtualFederation, run: RunResult, site: str) -> None:
        """Set up the site as at the start of the run."""
        self._plan, self._run = federation.plan(), run
        self._site: Site = federation.create_site(federation.data.sites[site])
        self.site = site

    def asked_in(self, round_number: int) -> bool:
        """Return whether the run selected this site to train in a round."""
        return self.site in self._run.rounds[round_number - 1].asked

    def play(self, round_number: int, prompts: Vector | None = None) -> PlayedRound:
        """Train a round; every earlier round that selected this site must have been played before.

        Args:
            round_number: from 1. A round may be played again; it always starts from the state before it.
            prompts: used instead of the run's own.

        Raises:
            InputRefusedError: if the run's own prompts cannot be read, or if the training loss is clearly different.
            TrainingDivergedError: see `Site.train`.
        """
        plan, own = self._plan, prompts is None
        payload = read_prompts(self._run.folder, plan, round_number - 1) if prompts is None else prompts
        self._site.select_round(round_number - 1)
        with self._site.hold(payload) as held:
            before = _choose_tensors(capture_model(held.model))
        header = Header(plan.run, round_number, plan.backbone_digest, plan.layout.hash)
        request = RoundRequest(header, "train", plan.rounds, payload, "train", settings=plan.training)
        reply = self._site.train(request)
        state = self._site.state
        if reply.payload is None or state is None:
            raise ValueError("a train reply carries a payload")
        difference = self._compare(round_number, reply.metrics["loss"]) if own else math.nan
        return PlayedRound(self.site, round_number, before, _choose_tensors(state.tensors), reply.payload, difference)

    def _compare(self, round_number: int, loss: float) -> float:
        exchange = self._run.rounds[round_number - 1].sites.get(self.site, SiteExchange())
        recorded = exchange.train.get("loss", math.nan)
        if math.isnan(recorded):
            return math.nan
        difference = 0.0 if loss == recorded else abs(loss - recorded) / max(abs(recorded), 1e-12)
        if difference > _FAR_OFF:
            fix = (
                f"the training loss of {self.site} in round {round_number} comes out as {loss:.6g}, so this is another "
                f"model or other images than the run's; restore them, or run again"
            )
            raise InputRefusedError([Problem("rounds.jsonl", recorded, fix)])
        return difference


def _choose_tensors(tensors: Tensors) -> dict[str, Tensor]:
    """Return the prompts and the head of a state, by the names that attacks use."""
    found = {name: tensors.get(f"model/{parameter}") for name, parameter in PARAMETERS.items()}
    return {name: torch.from_numpy(tensor) for name, tensor in found.items() if tensor is not None}
