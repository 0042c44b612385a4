"""Compute a cell's features before and after tuning from its models, for `ept-fed benchmark --analyse`."""

import io
import json
from collections.abc import Callable

import numpy as np
from PIL import Image

from client.site.held_model import LentModel
from ept_fed.config.benchmark_cell import Cell
from ept_fed.data.datasets.prepare import CachedDataset, SiteData
from ept_fed.evaluation.features import embed_tsne
from ept_fed.evaluation.metrics import Array
from ept_fed.evaluation.prediction import extract_features
from ept_fed.models.embedding import FOLDABLE
from ept_fed.models.prompted_vit import PromptedViT
from ept_fed.models.scaling_map import scaling_map
from ept_fed.seeds import derive_seed, numpy_generator
from ept_fed.storage.files import dump_json
from ept_fed.training.precision import use_bfloat16
from simulations.benchmark.analysis.feature_record import MOMENTS, FeatureRecord, Moment, ScalingExamples
from simulations.engine.virtual_sites import VirtualFederation

__all__ = ["count_fold", "record_features"]

_MAX_DRAWN = 2000
_EXAMPLES_PER_CLASS = 2
_MAX_CLASSES = 8


def count_fold(cell: Cell, data: SiteData) -> CachedDataset:
    """Return the images of a site on which the cell's metrics are measured."""
    return {"test": data.test, "validation": data.validation}[cell.fold]


def record_features(
    cell: Cell,
    federation: VirtualFederation,
    trained: Callable[[str], LentModel],
    numbers: object,
) -> FeatureRecord:
    """Return the features of every site's images, from the start and from the tuned model.

    Args:
        cell: to which the models belong.
        federation: with the cell's sites and start.
        trained: lends a site's tuned model.
        numbers: the tuned model's metrics at each site.
    """
    data = {name: count_fold(cell, site) for name, site in federation.data.sites.items()}
    labels = np.concatenate([images.labels.numpy() for images in data.values()])
    chosen = _choose_examples(labels, cell.seed)
    models: dict[Moment, Callable[[str], LentModel]] = {
        "before": lambda name: federation.create_site(federation.data.sites[name]).hold(),
        "after": trained,
    }
    features, factors = {}, {}
    for moment in MOMENTS:
        features[moment], factors[moment] = _look(federation, data, models[moment], chosen)
    # One seed for all methods, so that equal features, such as those of methods with the same start, give equal maps.
    seed = derive_seed(cell.seed, "t-SNE") % 2**32
    n = len(labels)
    drawn = np.arange(n)
    if n > _MAX_DRAWN:
        drawn = np.sort(numpy_generator(cell.seed, "t-SNE", "images").choice(n, _MAX_DRAWN, replace=False))
    scaling = None
    if all(len(found) for found in factors.values()):
        scaling = ScalingExamples(_decode(data, chosen), labels[chosen], factors)
    return FeatureRecord(
        key=cell.key,
        setting=cell.setting,
        classes=federation.data.classes,
        sites=tuple(data),
        numbers=json.loads(dump_json({"sites": numbers}))["sites"],
        labels=labels,
        places=np.repeat(np.arange(len(data)), [len(images) for images in data.values()]),
        features=features,
        drawn=drawn,
        maps={moment: embed_tsne(features[moment][drawn], seed) for moment in MOMENTS},
        scaling=scaling,
    )


def _look(
    federation: VirtualFederation,
    data: dict[str, CachedDataset],
    find: Callable[[str], LentModel],
    chosen: Array,
) -> tuple[Array, Array]:
    """Return the features (n, D) of all sites' images, and the factors (k, rows, columns) of the chosen ones.

    k is zero if the method scales nothing, or if it scales in a way that has no map.
    """
    experiment = federation.experiment
    batch_size = experiment.evaluation.batch_size
    bfloat16 = use_bfloat16(experiment.training.precision, federation.device)
    features, factors = [], []
    start = 0
    for name, images in data.items():
        own = chosen[(chosen >= start) & (chosen < start + len(images))] - start
        start += len(images)
        with find(name) as held:
            model = held.model
            features.append(extract_features(model, images, batch_size=batch_size, bfloat16=bfloat16))
            if isinstance(model, PromptedViT) and model.embedding in FOLDABLE:
                for batch, _ in images.batches(batch_size, order=own.tolist()):
                    factors.append(scaling_map(model, batch.to(model.device)).cpu().numpy())
    return np.concatenate(features), np.concatenate(factors) if factors else np.empty((0, 0, 0), dtype=np.float32)


def _choose_examples(labels: Array, seed: int) -> Array:
    """Return ascending indices of a few images per class, only of the most common classes if there are many."""
    present, counts = np.unique(labels, return_counts=True)
    common = present[np.argsort(-counts, kind="stable")][:_MAX_CLASSES]
    rng = numpy_generator(seed, "analysis", "examples")
    found = []
    for label in common:
        own = np.flatnonzero(labels == label)
        found.append(rng.choice(own, min(len(own), _EXAMPLES_PER_CLASS), replace=False))
    return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def _decode(data: dict[str, CachedDataset], chosen: Array) -> Array:
    """Return the chosen ones of all sites' images as pixels (k, H, W, 3) uint8."""
    owners = [(images, index) for images in data.values() for index in range(len(images))]
    pictures = []
    for place in chosen:
        images, index = owners[place]
        with Image.open(io.BytesIO(images.as_png(index))) as opened:
            pictures.append(np.asarray(opened.convert("RGB")))
    return np.stack(pictures)
