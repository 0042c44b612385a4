"""The baselines of a federation: local training at each site, and centralised training on all images."""

from collections.abc import Mapping

from client.site.local_baseline import train_locally
from client.site.site import Site
from ept_fed.config.experiment import TrainingSettings
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.progress import Progress
from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.storage.checkpoint_file import DamagedCheckpointError
from simulations.engine.virtual_sites import CENTRALISED_SITE, VirtualFederation

__all__ = ["make_heads", "train_centralised", "train_centralised_prompts", "train_local"]


def train_local(federation: VirtualFederation, folder: RunFolder, progress: Progress) -> Mapping[str, Site]:
    """Train every site locally, see `train_locally`; rounds that an earlier process saved in the folder are skipped."""
    sites = {
        name: federation.create_site(data, federation.keep_states(folder, "local", name))
        for name, data in federation.data.sites.items()
    }
    _train(sites, "local", federation, federation.experiment.training, progress)
    return sites


def train_centralised(federation: VirtualFederation, folder: RunFolder, progress: Progress) -> Site:
    """Train one centralised model on the training images of all S sites, as a reference.

    It has one head and takes S times the steps per round. It is therefore neither an upper bound nor a like-for-like
    comparison.
    """
    states = federation.keep_states(folder, "centralised", CENTRALISED_SITE)
    site = federation.create_site(federation.centralised(), states)
    _train({CENTRALISED_SITE: site}, "centralised", federation, federation.experiment.training, progress)
    return site


def train_centralised_prompts(
    federation: VirtualFederation, folder: RunFolder, progress: Progress
) -> tuple[Mapping[str, Site], Vector | None]:
    """Give every site the prompts of `train_centralised` and make a personalised head at each site, see `make_heads`.

    This measures what prompts can transfer without the loss from averaging. It is no upper bound, because averaging may
    also keep prompts from overfitting. Requires `federation.share` prompts; the centralised head is discarded.
    """
    prompts = train_centralised(federation, folder, progress).own_payload()
    return make_heads(federation, prompts, folder, progress, stage="centralised-prompts")


def make_heads(
    federation: VirtualFederation, prompts: Vector, folder: RunFolder, progress: Progress, *, stage: str
) -> tuple[Mapping[str, Site], Vector | None]:
    """Return sites with frozen prompts, each with a personalised head of its own images, and the payload to hold.

    The payload is None if it is part of the sites' states.

    The head is trained, computed or fixed, depending on `training.head`. A trained head gets the same rounds, order,
    crops and start as in `train_local`.

    Args:
        federation: must have `federation.share` set to prompts.
        prompts: payload that holds the prompts.
        folder: run folder in which the sites' states are kept.
        progress: receives each site's rounds.
        stage: name of this stage, in `progress` and in the folder.
    """
    sites = {
        name: federation.create_site(data, federation.keep_states(folder, stage, name))
        for name, data in federation.data.sites.items()
    }
    training = federation.experiment.training
    if training.head != "trained":
        return sites, prompts
    epochs = training.head_first_epochs or training.epochs
    still = {"prompt_lr": 0.0, "token_lr": 0.0, "method_lr": 0.0, "epochs": epochs, "head_first_epochs": 0}
    _train(sites, stage, federation, training.model_copy(update=still), progress, start=prompts)
    return sites, None


def _train(
    sites: Mapping[str, Site],
    stage: str,
    federation: VirtualFederation,
    training: TrainingSettings,
    progress: Progress,
    start: Vector | None = None,
) -> None:
    try:
        own = federation.experiment.federation
        train_locally(
            sites,
            training,
            own.rounds,
            progress,
            stage=stage,
            start=start,
            patience=own.patience,
            tolerance=own.round_tolerance,
        )
    except DamagedCheckpointError as broken:
        raise InputRefusedError([Problem("--resume", stage, f"{broken}; remove the file")]) from broken
