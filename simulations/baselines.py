"""What a federation is measured against: every site alone, and all images in one place."""

import time
from collections.abc import Mapping

from client.site import Site
from ept_fed.problems import InputRefusedError, Problem
from ept_fed.reports.progress import Progress
from ept_fed.reports.run_folder import RunFolder
from ept_fed.sealed_tensors import SealBrokenError
from ept_fed.training.loop import TrainingDivergedError
from simulations.virtual_sites import POOLED_SITE, VirtualFederation

__all__ = ["train_centralised", "train_local"]


def train_local(federation: VirtualFederation, folder: RunFolder, progress: Progress) -> Mapping[str, Site]:
    """Train every site alone: the same rounds, seeds, schedule and start as in the federation, but no exchange.

    What an earlier process trained, and left in the folder, is not trained again.
    """
    sites = {
        name: federation.create_site(data, federation.keep_states(folder, "local", name))
        for name, data in federation.data.sites.items()
    }
    _train_alone(sites, "local", federation, progress)
    return sites


def train_centralised(federation: VirtualFederation, folder: RunFolder, progress: Progress) -> Site:
    """Train one model on all sites' training images pooled, as a reference: one head, and S times the
    steps per round, so neither a bound nor a like-for-like comparison."""
    states = federation.keep_states(folder, "centralised", POOLED_SITE)
    site = federation.create_site(federation.pooled(), states)
    _train_alone({POOLED_SITE: site}, "centralised", federation, progress)
    return site


def _train_alone(sites: Mapping[str, Site], stage: str, federation: VirtualFederation, progress: Progress) -> None:
    experiment = federation.experiment
    rounds = experiment.federation.rounds
    progress.on_stage(stage, tuple(sites), rounds)
    try:
        done = {name: site.state.round if site.state else 0 for name, site in sites.items()}
    except SealBrokenError as broken:
        raise InputRefusedError([Problem("--resume", stage, f"{broken}; remove the file")]) from broken
    training = set(sites)
    for round_number in range(1, rounds + 1):
        started = time.perf_counter()
        for name in sorted(training):
            if round_number <= done[name]:
                continue
            try:
                outcome = sites[name].fit(experiment.training, round_number, rounds)
            except TrainingDivergedError as diverged:
                training.discard(name)
                progress.on_note(f"{stage}: {name} stops before round {round_number}, because {diverged}")
                continue
            progress.on_site(round_number, name, {"loss": outcome.loss})
        progress.on_round(round_number, time.perf_counter() - started)
