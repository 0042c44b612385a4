"""Membership inference from shared class statistics, of single sites and of all sites together.

python -m simulations.probes.class_statistics CONFIG [--set KEY=VALUE …] [--shots 1,5,30]

An image gets a higher membership score if its features are closer to the mean of its class, or if the second moments
account for them better (their leverage). The attacker has either the statistics of one site, or those of all sites
together, as a server has under secure aggregation. The prompts have their initial values. The members are the training
images of every site. The others are the same number of other images of that site, from the same classes. An attacker
with the statistics of two runs, or with shadow models, would infer more.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from client.site.factory import create_start_model
from ept_fed.evaluation.metrics import Array
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.privacy.attacks.membership import measure_advantage
from ept_fed.seeds import numpy_generator
from ept_fed.training.lda import ClassStatistics, average_statistics
from ept_fed.validation.load_experiment import load_experiment
from simulations.attacks.membership import Candidates, choose_candidates
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

__all__ = ["probe", "score_closeness", "score_leverage"]

# Regularisation, as a share of the moments' mean eigenvalue. Directions without images contain only rounding errors.
_FLOOR = 1e-3


def main() -> None:
    """Print one line per number of shots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--shots", default="1,5,30")
    arguments = parser.parse_args()
    shared = ("training.head=lda", "federation.share=prompts+head", "training.precision=float32")
    seen = [f"{kind}, {whose}" for kind in ("means", "moments") for whose in ("a site's own", "all sites'")]
    print(f"| images per class and site | members | {' | '.join(seen)} |\n|---|---|---|---|---|---|")
    for shots in map(int, arguments.shots.split(",")):
        overrides = [*arguments.overrides, *shared, f"data.shots={shots}"]
        probe(prepare_federation(load_experiment(arguments.config, overrides)), shots)


def probe(federation: VirtualFederation, shots: int) -> None:
    """Print how well members are separated from others, over all sites, with 95 % intervals over patients."""
    sites = {name: federation.create_site(data) for name, data in federation.data.sites.items()}
    model = create_start_model(
        federation.experiment, federation.backbone, len(federation.data.classes), federation.device
    )
    measured = {}
    for name, site in sites.items():
        if site.settings.head is None:
            raise ValueError("the head is not computed from statistics")
        measured[name] = site.settings.head.measure(model, site.data.train)
    everyone = average_statistics(list(measured.values()), [len(site.data.train) for site in sites.values()])
    scores: list[list[Array]] = [[], [], [], []]
    member: list[Array] = []
    groups: list[str] = []
    for name, site in sites.items():
        found = choose_candidates(site.data, 0)
        features, labels = extract(model, found)
        for number, statistics in enumerate((measured[name], everyone)):
            scores[number].append(score_closeness(features, labels, statistics))
            scores[2 + number].append(score_leverage(features, statistics))
        member.append(found.member)
        groups += found.groups
    truth = np.concatenate(member)
    told = [
        measure_advantage(np.concatenate(found), truth, groups, numpy_generator(0, "bootstrap")) for found in scores
    ]
    cells = [f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]" for interval in told]
    print(f"| {shots} | {int(truth.sum())} | {' | '.join(cells)} |", flush=True)


@torch.inference_mode()
def extract(model: TunedViT, candidates: Candidates) -> tuple[Array, Array]:
    """Return the features (n, D) of the candidates with the test transforms, and their labels (n,)."""
    model.eval()
    batches = candidates.images.batches(32, order=candidates.chosen)
    found = [
        (model.forward_features(batch.to(model.device)).cpu().numpy(), labels.numpy()) for batch, labels in batches
    ]
    features, labels = zip(*found, strict=True)
    return np.concatenate(features), np.concatenate(labels)


def score_closeness(features: Array, labels: Array, statistics: ClassStatistics) -> Array:
    """Return cosines (n,) of features (n, D) and their class means, both relative to the mean of all images."""
    centres = statistics.sums / np.where(statistics.shares > 0, statistics.shares, 1.0)[:, None]
    one, other = features - statistics.mean, centres[labels] - statistics.mean
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.divide((one * other).sum(1), lengths, out=np.zeros(len(one)), where=lengths > 0)


def score_leverage(features: Array, statistics: ClassStatistics) -> Array:
    """Return scores (n,): the negative leverage of features (n, D) under the second moments.

    Images that are not in the moments also have components in other directions, so their leverage is larger.
    """
    if statistics.moments is None:
        raise ValueError("these statistics have no moments")
    width = len(statistics.mean)
    floor = _FLOOR * np.trace(statistics.moments) / width
    solved = np.linalg.solve(statistics.moments + floor * np.eye(width), features.T.astype(np.float64))
    return -np.einsum("nd,dn->n", features, solved)


if __name__ == "__main__":
    main()
