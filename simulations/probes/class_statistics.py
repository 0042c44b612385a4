"""Membership inference from shared class statistics, of single sites and of all sites together.

python -m simulations.probes.class_statistics CONFIG [--set KEY=VALUE …] [--shots 1,5,30]

The attacker has the statistics of one site, or those of all sites together, as a server has under secure aggregation,
and public images of the same kind: half of the lesions that nobody trains on. From the means of classes it computes the
log likelihood ratio of `ept_fed.privacy.attacks.class_means`, from second moments how well they account for an image
(its leverage). The prompts have their initial values. The members are the training images of every site; the others
are the same number of images of that site, from the same classes, and of lesions that are neither trained on nor
public. Statistics are means over several views of an image. With kept views (`data.augmentation.views`) the attacker
has the same ones, because they depend only on the image. Each cell has the AUC with its interval, and the share of
members that are found with 1 % false alarms. As a control, the table also has the ratio with the members drawn at
random: an attack must not find those. The mean of one image is the control that an attack must find.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.site.factory import create_start_model
from ept_fed.data.datasets.prepare import CachedDataset
from ept_fed.evaluation.metrics import Array
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.privacy.attacks.class_means import PublicFeatures, score_members
from ept_fed.privacy.attacks.membership import measure_advantage, measure_detection
from ept_fed.seeds import derive_seed, numpy_generator
from ept_fed.training.lda import ClassStatistics, average_statistics
from ept_fed.training.lda_head import VIEWS
from ept_fed.validation.load_experiment import load_experiment
from simulations.attacks.membership import choose_candidates
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

__all__ = ["Known", "find_public", "probe", "score_leverage"]

# Regularisation, as a share of the moments' mean eigenvalue. Directions without images contain only rounding errors.
_FLOOR = 1e-3
_VIEWS_OF = ("means, a site's own", "means, all sites'", "means, all sites', members at random",
             "moments, a site's own", "moments, all sites'")  # fmt: skip
_RATE = 0.01


@dataclass(frozen=True)
class Known:
    """What the attacker knows: the public lesions, and their features."""

    groups: frozenset[str]
    features: PublicFeatures


def main() -> None:
    """Print one line per number of shots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--shots", default="1,5,30")
    arguments = parser.parse_args()
    shared = ("training.head=lda", "federation.share=prompts+head", "training.precision=float32")
    print(f"| images per class and site | members | {' | '.join(_VIEWS_OF)} |\n|---|---|{'---|' * len(_VIEWS_OF)}")
    known = None
    for shots in map(int, arguments.shots.split(",")):
        federation = prepare_federation(
            load_experiment(arguments.config, [*shared, f"data.shots={shots}", *arguments.overrides])
        )
        # Every number of shots has the same test lesions.
        known = known or find_public(federation)
        probe(federation, shots, known)


def find_public(federation: VirtualFederation) -> Known:
    """Return half of the test lesions of all sites, and their features."""
    model, classes = _start(federation), len(federation.data.classes)
    tests = {name: site.test for name, site in federation.data.sites.items()}
    lesions = sorted({record.group for images in tests.values() for record in images.records})
    drawn = numpy_generator(federation.experiment.data_seed, "public").permutation(len(lesions))[: len(lesions) // 2]
    groups = frozenset(lesions[place] for place in drawn)
    features, labels, sites = [], [], []
    public = {name: [record for record in test.records if record.group in groups] for name, test in tests.items()}
    for place, images in enumerate(federation.load_alike(public).values()):
        features.append(extract(model, images, seed=derive_seed(place, "public"))[1])
        labels.append(images.labels.numpy())
        sites.append(np.full(len(images), place))
    found = PublicFeatures.of(*map(np.concatenate, (features, labels, sites)), classes=classes)
    return Known(groups, found)


def probe(federation: VirtualFederation, shots: int, known: Known) -> None:
    """Print how well members are separated from others, over all sites, with 95 % intervals over lesions."""
    sites = {name: federation.create_site(data) for name, data in federation.data.sites.items()}
    model, measured = _start(federation), {}
    for name, site in sites.items():
        if site.settings.head is None:
            raise ValueError("the head is not computed from statistics")
        measured[name] = site.settings.head.measure(model, site.data.train)
    counts = {name: len(site.data.train) for name, site in sites.items()}
    everyone = average_statistics(list(measured.values()), list(counts.values()))
    per_class = np.stack([np.round(measured[name].shares * counts[name]) for name in sites])
    scores: list[list[Array]] = [[] for _ in _VIEWS_OF]
    member: list[Array] = []
    groups: list[str] = []
    for place, name in enumerate(sites):
        found = choose_candidates(federation, name, 0, known=known.groups)
        plain, features = extract(model, found.images, seed=derive_seed(place, "candidates"))
        labels = found.images.labels.numpy()
        own = _score(features, labels, place, measured[name], per_class[place : place + 1], known.features, [place])
        all_sites = _score(features, labels, place, everyone, per_class, known.features, range(len(sites)))
        leverages = (score_leverage(plain, statistics) for statistics in (measured[name], everyone))
        for score, values in zip(scores, (own, all_sites, all_sites, *leverages), strict=True):
            score.append(values)
        member.append(found.member)
        groups += found.groups
    truth = np.concatenate(member)
    at_random = numpy_generator(0, "control").permutation(truth)
    truths = (truth, truth, at_random, truth, truth)
    cells = [_tell(np.concatenate(score), true, groups) for score, true in zip(scores, truths, strict=True)]
    print(f"| {shots} | {int(truth.sum())} | {' | '.join(cells)} |", flush=True)


def _start(federation: VirtualFederation) -> TunedViT:
    classes = len(federation.data.classes)
    return create_start_model(federation.experiment, federation.backbone, classes, federation.device)


def _score(
    features: Array,
    labels: Array,
    site: int,
    released: ClassStatistics,
    counts: Array,
    public: PublicFeatures,
    sites: Sequence[int],
) -> Array:
    """Return the log likelihood ratios (n,) of one site's candidates under the released means of some sites.

    Args:
        features: (n, D) features of the candidates.
        labels: (n,) their classes.
        site: index of their site.
        released: the released statistics.
        counts: (s, C) number of training images of the sites that released them, by class.
        public: what the attacker knows from public images.
        sites: (s,) indices of these sites.
    """
    total = np.maximum(counts.sum(axis=0), 1)
    expected = np.einsum("sc,scd->cd", counts, public.means[list(sites)]) / total[:, None]
    means = released.sums / np.where(released.shares > 0, released.shares, 1.0)[:, None]
    centre = public.means[site, labels]
    return score_members(features, centre, means[labels], expected[labels], total[labels], public.precision)


def _tell(scores: Array, member: Array, groups: Sequence[str]) -> str:
    interval = measure_advantage(scores, member, groups, numpy_generator(0, "bootstrap"))
    found = measure_detection(scores, member, _RATE)
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}], {found:.0%}"


@torch.inference_mode()
def extract(model: TunedViT, images: CachedDataset, *, seed: int) -> tuple[Array, Array]:
    """Return the features (n, D) of images, and their means (n, D) over the views that statistics are measured on.

    Kept views (`data.augmentation.views`) depend only on the image, so they are the same as the site's own.
    """
    model.eval()
    views = []
    for view in range(1 + min(VIEWS - 1, images.views or VIEWS - 1)):
        augment = derive_seed(seed, "view", view) if view else None
        kept = view - 1 if view and images.views else None
        batches = images.batches(32, augment_seed=augment, view=kept)
        seen = [model.forward_features(batch.to(model.device)).cpu().numpy() for batch, _ in batches]
        views.append(np.concatenate(seen).astype(np.float64))
    return views[0], np.asarray(np.mean(views, axis=0))


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
