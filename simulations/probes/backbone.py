"""Few-shot linear probe of a backbone on a zip of images in class folders, against the same network untrained.

    python -m simulations.probes.backbone --zip pbc_bloodcells_128.zip [--fold final] [--shots 16] [--seeds 5]

A seeded permutation per class splits the images once: the first 100 of each class are the development fold, the rest
are the final fold. Make all choices about a backbone on the development fold, and report the final fold once.

For each seed, the probe draws the shots, fits a logistic regression on their frozen features, and tests it on all other
images. The shots also standardise the features, and the penalty is chosen by cross-validation among them. The probe
prints the accuracy per seed, the mean with a 95 % t interval over seeds, and the paired difference to random weights.
"""

import argparse
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import t as student_t
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ept_fed.data.datasets.transforms import build_evaluation_transforms
from ept_fed.data.decoding.image_store import open_images
from ept_fed.models.backbones import Backbone, create_backbone
from ept_fed.seeds import derive_seed, numpy_generator

Features = npt.NDArray[np.float32]
FOLDS = ("development", "final", "all")
DEVELOPMENT_PER_CLASS = 100


def main() -> None:
    """Compute the features once per backbone, probe them for each seed, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zip", type=Path, required=True)
    parser.add_argument("--backbone", default="vit_demo_patch8_64")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fold", choices=FOLDS, default="development")
    arguments = parser.parse_args()
    names, labels, classes = list_images(arguments.zip)
    chosen = take_fold(labels, arguments.fold)
    names, labels = [names[i] for i in chosen], labels[chosen]
    print(
        f"{arguments.fold} fold: {len(names)} images, {len(classes)} classes, {arguments.shots} shots, "
        f"{arguments.seeds} seeds"
    )
    accuracies: dict[str, list[float]] = {"trained": [], "random": []}
    trained = create_backbone(arguments.backbone, weights=arguments.weights, image_size=arguments.image_size, seed=0)
    features = embed(trained, arguments.zip, names)
    for seed in range(arguments.seeds):
        untrained = create_backbone(
            arguments.backbone, weights=None, image_size=arguments.image_size, seed=derive_seed(seed, "random backbone")
        )
        for kind, embedded in (("trained", features), ("random", embed(untrained, arguments.zip, names))):
            accuracies[kind].append(probe(embedded, labels, arguments.shots, seed))
        print(
            f"seed {seed}: trained {accuracies['trained'][-1]:.3f}  random {accuracies['random'][-1]:.3f}", flush=True
        )
    for kind, values in accuracies.items():
        print(f"{kind:10s} {interval(values)}")
    differences = [a - b for a, b in zip(accuracies["trained"], accuracies["random"], strict=True)]
    print(f"{'difference':10s} {interval(differences)}")


def list_images(path: Path) -> tuple[list[str], npt.NDArray[np.int64], list[str]]:
    """Return names, class indices and class names; the class is the folder of the file."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg", ".png")))
    folders = [PurePosixPath(name).parent.name for name in names]
    classes = sorted(set(folders))
    return names, np.array([classes.index(folder) for folder in folders]), classes


def take_fold(labels: npt.NDArray[np.int64], fold: str) -> npt.NDArray[np.int64]:
    """Return the sorted indices of the images of a fold; the split does not depend on the probe's seeds."""
    if fold == "all":
        return np.arange(len(labels))
    rng, parts = numpy_generator(0, "probe folds"), []
    for label in np.unique(labels):
        shuffled = rng.permutation(np.flatnonzero(labels == label))
        development, final = np.split(shuffled, [DEVELOPMENT_PER_CLASS])
        parts.append(development if fold == "development" else final)
    return np.sort(np.concatenate(parts))


@torch.inference_mode()
def embed(backbone: Backbone, path: Path, names: list[str]) -> Features:
    """Return pooled features (n, D) of the named images."""
    store, transform = open_images(path), build_evaluation_transforms(backbone.input)
    parts = []
    for start in range(0, len(names), 64):
        images = [transform({"image": store.read(name)})["image"] for name in names[start : start + 64]]
        parts.append(backbone.vit(torch.stack(images)).numpy())
    return np.concatenate(parts)


def probe(features: Features, labels: npt.NDArray[np.int64], shots: int, seed: int) -> float:
    """Return the accuracy of a linear probe on all images that are not shots."""
    rng = numpy_generator(seed, "probe shots")
    chosen = np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)])
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    classifier = LogisticRegressionCV(
        Cs=np.logspace(-4, 1, 6), cv=4, max_iter=2000, l1_ratios=(0.0,), scoring="accuracy", use_legacy_attributes=False
    )
    model = make_pipeline(StandardScaler(), classifier).fit(features[chosen], labels[chosen])
    return float(model.score(features[rest], labels[rest]))


def interval(values: list[float]) -> str:
    """Return the mean and the 95 % t interval over seeds as text."""
    mean, n = float(np.mean(values)), len(values)
    half = float(student_t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return f"{mean:.3f} (95 % {mean - half:.3f} to {mean + half:.3f})"


if __name__ == "__main__":
    main()
