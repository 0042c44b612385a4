"""What noise on class means costs, and what it protects: accuracy and the strongest attack, by ε.

python -m simulations.probes.noised_means CONFIG [--set KEY=VALUE …] [--shots 30,100,0] [--epsilons 0,8,2]

Half of the test lesions are public: their labelled images make the space of `ept_fed.privacy.dp.noised_sums`. The
training images of all sites make one release of sums and counts in it, with the noise of (ε, δ = 1e-5) for one image,
as the sum under secure aggregation would have. Its head is tested on the other half of the test lesions.
*Public prototypes* are another head with the same ε: the mean of five public images per class, chosen by the private
ones. The attacker knows the mechanism, the noise, the counts and the public images, and computes the likelihood ratio
of each candidate.
Shots 0 uses all images; ε 0 adds no noise. Each cell is a mean over noise draws, and over samples of training images.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.site.factory import create_start_model
from ept_fed.data.records.records import ImageRecord
from ept_fed.evaluation.metrics import Array, classification_metrics
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.privacy.attacks.class_means import PublicFeatures, score_members
from ept_fed.privacy.attacks.membership import match_classes, measure_detections
from ept_fed.privacy.dp.accountant import find_noise_multiplier
from ept_fed.privacy.dp.noised_sums import NoisedSums, PublicSpace, release_sums
from ept_fed.privacy.dp.public_prototypes import choose_prototypes
from ept_fed.seeds import numpy_generator
from ept_fed.training.lda import measure_statistics, solve_lda
from ept_fed.validation.load_experiment import load_experiment
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

__all__ = ["Features", "assess", "read_features"]

_DELTA = 1e-5
_DRAWS = 10
_BATCH = 64
_PROTOTYPES = 5
_COLUMNS = (
    *(
        "images per class and site",
        "ε",
        "dimensions",
        "AUC: local LDA",
        "LDA of the public images",
        "all sites' moments",
    ),
    *("all sites' noised sums", "public prototypes", "attack on the sums: AUC", "found at 1 %"),
)


@dataclass(frozen=True)
class Features:
    """Frozen features of a federation.

    Attributes:
        train, test, public: by site, features (n, D) and labels (n,).
        groups: lesions of the test images, by site.
        classes: number of classes.
        shrinkage: of local LDA heads.
    """

    train: Mapping[str, tuple[Array, Array]]
    test: Mapping[str, tuple[Array, Array]]
    public: Mapping[str, tuple[Array, Array]]
    groups: Mapping[str, Sequence[str]]
    classes: int
    shrinkage: float


def main() -> None:
    """Print one line per number of shots, ε and number of dimensions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--shots", default="30,100,0")
    parser.add_argument("--epsilons", default="0,8,2")
    parser.add_argument("--dimensions", default="384,128")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    print(f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|")
    kept: dict[str, Array] = {}
    for shots in map(int, given.shots.split(",")):
        runs = []
        for seed in range(given.seeds):
            overrides = [*given.overrides, f"data.shots={shots or 'null'}", f"seed={seed}", "data.augmentation.views=0"]
            runs.append(read_features(prepare_federation(load_experiment(given.config, overrides)), kept))
        for dimensions in map(int, given.dimensions.split(",")):
            for epsilon in map(float, given.epsilons.split(",")):
                found = np.mean([assess(run, epsilon, dimensions, seed) for seed, run in enumerate(runs)], axis=0)
                cells = [shots or "all", epsilon or "no noise", dimensions, *(f"{value:.3f}" for value in found[:5])]
                print(f"| {' | '.join(map(str, cells))} | {found[5]:.2f} | {found[6]:.1%} |", flush=True)


def read_features(federation: VirtualFederation, kept: dict[str, Array]) -> Features:
    """Return frozen features of all images; half of the test lesions are public.

    Args:
        federation: of the images.
        kept: features by image, of this backbone; new ones are added.
    """
    classes = len(federation.data.classes)
    model = create_start_model(federation.experiment, federation.backbone, classes, federation.device)
    lesions = sorted({record.group for data in federation.data.sites.values() for record in data.test.records})
    order = numpy_generator(federation.experiment.data_seed, "public").permutation(len(lesions))
    known = {lesions[index] for index in order[: len(lesions) // 2]}
    train, test, public, groups = {}, {}, {}, {}
    for name, data in federation.data.sites.items():
        inside = [record for record in data.test.records if record.group in known]
        outside = [record for record in data.test.records if record.group not in known]
        train[name], public[name], test[name] = (
            _read(model, federation, name, records, kept) for records in (data.train.records, inside, outside)
        )
        groups[name] = [record.group for record in outside]
    return Features(train, test, public, groups, classes, federation.experiment.training.head_shrinkage)


def assess(features: Features, epsilon: float, dimensions: int, seed: int) -> tuple[float, ...]:
    """Return the seven numbers of a line: mean AUC over sites of five heads, and AUC and found at 1 % of the attack.

    Args:
        features: of all images.
        epsilon: of the release at δ = 1e-5; 0 adds no noise.
        dimensions: of the public space.
        seed: of the noise.
    """
    x, labels = (np.concatenate(parts) for parts in zip(*features.public.values(), strict=True))
    space = PublicSpace.of(x, labels, dimensions=dimensions)
    multiplier = find_noise_multiplier(epsilon, _DELTA, sampling_rate=1.0, steps=1) if epsilon else 0.0
    private, truth = (np.concatenate(parts) for parts in zip(*features.train.values(), strict=True))
    shared, prototypes, attacks = [], [], []
    known = space.move(x)
    for draw in range(_DRAWS if epsilon else 1):
        rng = numpy_generator(seed, "noise", draw)
        released = release_sums(space, private, truth, classes=features.classes, noise_multiplier=multiplier, rng=rng)
        shared.append(_score_head(features, space, released.head()))
        chosen = choose_prototypes(
            known, space.move(private), truth, classes=features.classes, draws=_PROTOTYPES,
            epsilon=epsilon or np.inf, rng=rng,
        )  # fmt: skip
        means = known[chosen].mean(axis=1)
        prototypes.append(_score_head(features, space, (means, -0.5 * np.einsum("cr,cr->c", means, means))))
        attacks.append(_attack(features, space, released, seed))
    pooled = dict.fromkeys(features.test, (x, labels)), dict.fromkeys(features.test, (private, truth))
    heads = (_score_lda(features, images) for images in (features.train, *pooled))
    return *heads, float(np.mean(shared)), float(np.mean(prototypes)), *map(float, np.mean(attacks, axis=0))


@torch.inference_mode()
def _read(
    model: TunedViT, federation: VirtualFederation, site: str, records: Sequence[ImageRecord], kept: dict[str, Array]
) -> tuple[Array, Array]:
    missing = [record for record in records if record.image not in kept]
    model.eval()
    done = 0
    for batch, _ in federation.load_alike({site: missing})[site].batches(_BATCH):
        found = model.forward_features(batch.to(model.device)).float().cpu().numpy()
        for record, feature in zip(missing[done : done + len(found)], found, strict=True):
            kept[record.image] = feature
        done += len(found)
    return np.stack([kept[record.image] for record in records]), np.array([record.labels[0] for record in records])


def _score_head(features: Features, space: PublicSpace, head: tuple[Array, Array]) -> float:
    weight, bias = head
    return _mean_auc({name: (space.move(x) @ weight.T + bias, y) for name, (x, y) in features.test.items()})


def _score_lda(features: Features, images: Mapping[str, tuple[Array, Array]]) -> float:
    """Return the mean AUC over sites of the LDA head of each site's entry."""
    scores = {}
    for name, (x, labels) in images.items():
        statistics = measure_statistics(x, labels, classes=features.classes)
        weight, bias = solve_lda(statistics, statistics, multi_label=False, shrinkage=features.shrinkage)
        test, truth = features.test[name]
        scores[name] = (test @ weight.T + bias, truth)
    return _mean_auc(scores)


def _mean_auc(scores: Mapping[str, tuple[Array, Array]]) -> float:
    found = []
    for logits, truth in scores.values():
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        metrics = classification_metrics(truth, shifted / shifted.sum(axis=1, keepdims=True), "single_label")
        found.append(metrics["auc"])
    return float(np.nanmean(found))


def _attack(features: Features, space: PublicSpace, released: NoisedSums, seed: int) -> tuple[float, float]:
    """Return AUC and found at 1 % for members against other test images of the same sites and classes."""
    cut = {name: (space.cut(x), y) for name, (x, y) in features.public.items()}
    sites = np.concatenate([np.full(len(y), place) for place, (_, y) in enumerate(cut.values())])
    x, labels = (np.concatenate(parts) for parts in zip(*cut.values(), strict=True))
    public = PublicFeatures.of(x, labels, sites, classes=features.classes)
    counts = np.stack([np.bincount(y, minlength=features.classes) for _, y in features.train.values()])
    surplus = released.sums - np.einsum("sc,scr->cr", counts, public.means)
    within = np.linalg.inv(public.precision)
    noise = released.deviation**2 * np.eye(len(within))
    precisions = [np.linalg.inv(max(count, 1) * within + noise) for count in counts.sum(axis=0)]
    scores, member, groups = [], [], []
    for place, name in enumerate(features.train):
        (inside, own), (outside, other) = features.train[name], features.test[name]
        chosen, unknown = match_classes(own, other, numpy_generator(seed, name, "candidates"))
        moved = space.cut(np.concatenate([inside[chosen], outside[unknown]]))
        truth = np.concatenate([own[chosen], other[unknown]])
        found = np.empty(len(truth))
        for label in np.unique(truth):
            at = truth == label
            centre = np.broadcast_to(public.means[place, label], moved[at].shape)
            told = np.broadcast_to(surplus[label], moved[at].shape)
            one, none = np.ones(at.sum()), np.zeros_like(told)
            found[at] = score_members(moved[at], centre, told, none, one, precisions[label])
        scores.append(found)
        member.append(np.arange(len(truth)) < len(chosen))
        groups += [f"{name} {index}" for index in range(len(chosen))]
        groups += [features.groups[name][index] for index in unknown]
    whole = measure_detections(
        np.concatenate(scores)[None], np.concatenate(member)[None], groups, numpy_generator(seed, "bootstrap")
    )
    return whole.auc.value, whole.at_1.value


if __name__ == "__main__":
    main()
