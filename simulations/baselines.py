"""What a federation is measured against: every site alone, and all images in one place."""

from collections.abc import Mapping

from client.site import Site
from client.train_alone import train_alone
from ept_fed.problems import InputRefusedError, Problem
from ept_fed.reports.progress import Progress
from ept_fed.reports.run_folder import RunFolder
from ept_fed.sealed_tensors import SealBrokenError
from simulations.virtual_sites import POOLED_SITE, VirtualFederation

__all__ = ["train_centralised", "train_local"]


def train_local(federation: VirtualFederation, folder: RunFolder, progress: Progress) -> Mapping[str, Site]:
    """Train every site alone, see `train_alone`; what an earlier process left in the folder is not trained again."""
    sites = {
        name: federation.create_site(data, federation.keep_states(folder, "local", name))
        for name, data in federation.data.sites.items()
    }
    _train(sites, "local", federation, progress)
    return sites


def train_centralised(federation: VirtualFederation, folder: RunFolder, progress: Progress) -> Site:
    """Train one model on all sites' training images pooled, as a reference: one head, and S times the
    steps per round, so neither a bound nor a like-for-like comparison."""
    states = federation.keep_states(folder, "centralised", POOLED_SITE)
    site = federation.create_site(federation.pooled(), states)
    _train({POOLED_SITE: site}, "centralised", federation, progress)
    return site


def _train(sites: Mapping[str, Site], stage: str, federation: VirtualFederation, progress: Progress) -> None:
    experiment = federation.experiment
    try:
        train_alone(sites, experiment.training, experiment.federation.rounds, progress, stage=stage)
    except SealBrokenError as broken:
        raise InputRefusedError([Problem("--resume", stage, f"{broken}; remove the file")]) from broken
