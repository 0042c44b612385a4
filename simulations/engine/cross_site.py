"""Cross-site assessment: each site's local model on the test images of every site."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from client.site.held_model import LentModel
from ept_fed.data.datasets.prepare import CachedDataset, SiteData
from ept_fed.evaluation.metrics import Array, class_auc

__all__ = ["assess_cross_site"]


def assess_cross_site(sites: Mapping[str, SiteData], load: Callable[[str], LentModel]) -> list[dict[str, Any]]:
    """Return one row per model, tested site and class; this takes S² passes over test images for S sites.

    Args:
        sites: data of all sites, by name.
        load: lends a site's local model, its own head included.

    Returns:
        Rows for `write_cross_site`. The AUC is one class against the rest; it is NaN if all or none of the test
        images are of the class.
    """
    rows = []
    for name, own in sites.items():
        training = _hot(own.train).sum(axis=0)
        for tested, other in sites.items():
            with load(name) as held:
                probabilities = held.predict(other.test)
            hot = _hot(other.test)
            for c, auc in enumerate(class_auc(hot, probabilities)):
                rows.append(
                    {
                        "model": name,
                        "tested_on": tested,
                        "class": other.classes[c],
                        "auc": auc,
                        "test_images": int(hot[:, c].sum()),
                        "training_images": int(training[c]),
                    }
                )
    return rows


def _hot(images: CachedDataset) -> Array:
    """Return (n, C) bool: the classes of each image."""
    hot = np.zeros((len(images), len(images.classes)), dtype=bool)
    for place, record in enumerate(images.records):
        hot[place, list(record.labels)] = True
    return hot
