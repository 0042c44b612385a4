"""Membership inference from federated prompts, by the loss of an image.

python -m simulations.probes.membership CONFIG [--set KEY=VALUE …]

An image gets a higher membership score if its loss is smaller. The score is computed in three ways: from the loss under
the site's own last update, from the loss under the average of all sites, and from the difference of the two, which is
the change by the site's update. The head is that of the site. If it is a fixed head, every receiver of the prompts has
it. The members are the training images of every site. The others are the same number of other images of that site, from
the same classes. An attacker with shadow models would infer more.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from client.site.held_model import HeldModel
from ept_fed.evaluation.bootstrap import Interval
from ept_fed.evaluation.metrics import Array
from ept_fed.privacy.attacks.membership import measure_advantage
from ept_fed.progress import Silent
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.seeds import numpy_generator
from ept_fed.validation.load_experiment import load_experiment
from simulations.attacks.membership import Candidates, choose_candidates, measure_losses
from simulations.engine.federate import federate
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

__all__ = ["VIEWS", "probe"]

VIEWS = ("a site's own update", "the average", "what the update changed")


def main() -> None:
    """Run the probe and print a table with one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    federation = prepare_federation(load_experiment(arguments.config, arguments.overrides))
    with tempfile.TemporaryDirectory() as scratch:
        members, found = probe(federation, Path(scratch))
    cells = [f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]" for interval in found]
    print(f"| members | {' | '.join(VIEWS)} |\n|---|---|---|---|\n| {members} | {' | '.join(cells)} |")


def probe(federation: VirtualFederation, scratch: Path) -> tuple[int, tuple[Interval, ...]]:
    """Return the number of members, and the AUC of each of `VIEWS` with its 95 % interval over patients.

    Args:
        federation: the federation to run.
        scratch: an empty folder.
    """
    plan, folder = federation.plan(), RunFolder(scratch)
    sites = {
        name: federation.create_site(data, federation.keep_states(folder, "federated", name))
        for name, data in federation.data.sites.items()
    }
    average = federate(federation, plan, sites, folder, Silent()).payload
    scores: tuple[list[Array], ...] = ([], [], [])
    member: list[Array] = []
    groups: list[str] = []
    for site in sites.values():
        candidates = choose_candidates(federation, site.data.name, federation.experiment.seed)
        under = []
        for payload in (site.own_payload(), average):
            with site.hold(payload) as held:
                under.append(_measure(held, candidates))
        own, shared = under
        for found, score in zip(scores, (-own, -shared, shared - own), strict=True):
            found.append(score)
        member.append(candidates.member)
        groups += candidates.groups
    truth = np.concatenate(member)
    rng = [numpy_generator(federation.experiment.seed, "membership", view) for view in VIEWS]
    intervals = [
        measure_advantage(np.concatenate(score), truth, groups, generator)
        for score, generator in zip(scores, rng, strict=True)
    ]
    return int(truth.sum()), tuple(intervals)


@torch.inference_mode()
def _measure(held: HeldModel, candidates: Candidates) -> Array:
    """Return losses (n,) of the candidates under a model."""
    model = held.model.eval()
    losses = [
        measure_losses(model(images.to(model.device)).float().cpu(), labels, candidates.images.task)
        for images, labels in candidates.images.batches(32)
    ]
    return np.concatenate(losses)


if __name__ == "__main__":
    main()
