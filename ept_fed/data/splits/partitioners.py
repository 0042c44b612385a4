"""Partitioners of whole groups among virtual sites: pure functions over arrays, one per kind of `data.partition`.

The definitions of flwr-datasets 0.6 are used where they exist, so that results are comparable. There are two
differences. First, a list of groups is cut instead of a list of single images; the first image of a group determines
its site. Second, if the images already have splits, each split is cut in the same way, so that a site's test images
have the same skew as its training images. For groups of one image without splits, the sites' shares of each class have
the same distribution as in flwr-datasets.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ept_fed.config.partition import (
    DirichletPartition,
    IIDPartition,
    QuantityPartition,
    ShardsPartition,
)
from ept_fed.seeds import numpy_generator

__all__ = [
    "PARTITIONERS",
    "Groups",
    "TooFewImagesError",
    "deal_dirichlet",
    "deal_iid",
    "deal_quantity",
    "deal_shards",
]

Indices = np.ndarray

_DRAWS = 11  # flwr-datasets' DirichletPartitioner draws once and repeats ten times


@dataclass(frozen=True)
class Groups:
    """G groups, sorted by split and label and shuffled within these, so that any cut of the list is random.

    Attributes:
        sizes: (G,) images per group, each at least 1.
        labels: (G,) class index of a group's first image, -1 if it has none.
        splits: (G,) number of the split that a group already has; equal for all groups if they have no splits.
    """

    sizes: Indices
    labels: Indices
    splits: Indices

    def __len__(self) -> int:
        return len(self.sizes)

    def strata(self, *, by_label: bool) -> Iterator[Indices]:
        """Yield the positions of the groups of each split, or of each label and split, ordered by label as in flwr."""
        labels = self.labels if by_label else np.zeros_like(self.labels)
        for label in np.unique(labels):
            for split in np.unique(self.splits):
                chosen = np.flatnonzero((labels == label) & (self.splits == split))
                if len(chosen):
                    yield chosen


class TooFewImagesError(Exception):
    """No draw gave every site enough images.

    Attributes:
        images: (S,) images per site in the last draw.
    """

    def __init__(self, images: Indices) -> None:
        super().__init__(f"the smallest site has {images.min()} images")
        self.images = images


def deal_iid(groups: Groups, settings: IIDPartition, _seed: int) -> Indices:
    """Assign groups in turn: per split and label the sites differ by at most one group; flwr's IidPartitioner.

    Returns:
        (G,) the site of each group, 0 … sites - 1. All partitioners here return this.
    """
    return np.arange(len(groups)) % settings.sites


def deal_dirichlet(groups: Groups, settings: DirichletPartition, seed: int) -> Indices:
    """Cut each class into shares p ~ Dirichlet(alpha, …, alpha) over the sites; flwr's DirichletPartitioner.

    The draw is repeated, at most ten times, until every site has `min_images`. With `self_balancing`, a site that has
    more images than the average gets no images of the following classes (Yurochkin et al. 2019, arXiv 1905.12022, as in
    their code).

    Raises:
        TooFewImagesError: if the last draw leaves a site with fewer than `min_images`.
    """
    average = groups.sizes.sum() / settings.sites

    def draw(rng: np.random.Generator) -> Indices:
        dealt = np.empty(len(groups), dtype=np.int64)
        held = np.zeros(settings.sites)
        shares, label = np.empty(0), None
        for chosen in groups.strata(by_label=True):
            if groups.labels[chosen[0]] != label:
                label = groups.labels[chosen[0]]
                shares = rng.dirichlet(np.full(settings.sites, settings.alpha))
                if settings.self_balancing:
                    shares = np.where(held > average, 0.0, shares)
                    shares = shares if shares.sum() > 0 else (held <= average).astype(float)
                    shares /= shares.sum()
            dealt[chosen] = _cut(groups.sizes[chosen], shares)
            held += np.bincount(dealt[chosen], weights=groups.sizes[chosen], minlength=settings.sites)
        return dealt

    return _draw_until(draw, groups, settings.sites, settings.min_images, seed)


def deal_shards(groups: Groups, settings: ShardsPartition, seed: int) -> Indices:
    """Sort by label, cut into sites · shards_per_site equal shards and give each site `shards_per_site` at random.

    McMahan et al. 2017 (arXiv 1602.05629), flwr's ShardPartitioner. If the number of images is not a multiple of the
    number of shards, flwr drops the remaining images. Here shards differ by one image and no image is dropped.
    """
    shards = settings.sites * settings.shards_per_site
    site_of = numpy_generator(seed, "shards").permutation(shards) // settings.shards_per_site
    dealt = np.empty(len(groups), dtype=np.int64)
    for chosen in groups.strata(by_label=False):
        sorted_by_label = chosen[np.argsort(groups.labels[chosen], kind="stable")]
        sizes = groups.sizes[sorted_by_label]
        dealt[sorted_by_label] = site_of[(np.cumsum(sizes) - sizes) * shards // sizes.sum()]
    return dealt


def deal_quantity(groups: Groups, settings: QuantityPartition, seed: int) -> Indices:
    """Give each site the same share of every class, proportional to exp(sigma · z) with z standard normal.

    LEAF (arXiv 1812.01097) and FedProx's synthetic data (arXiv 1812.06127) have such log-normal sizes. flwr has sizes
    that grow linearly, squared or exponentially, but no random sizes.

    Raises:
        TooFewImagesError: if the last draw leaves a site with fewer than `min_images` images.
    """

    def draw(rng: np.random.Generator) -> Indices:
        weights: np.ndarray = np.exp(settings.sigma * rng.standard_normal(settings.sites))
        dealt = np.empty(len(groups), dtype=np.int64)
        for chosen in groups.strata(by_label=True):
            # Without a new order of sites per class, the same sites would always get the images left by rounding.
            order = rng.permutation(settings.sites)
            dealt[chosen] = order[_cut(groups.sizes[chosen], weights[order] / weights.sum())]
        return dealt

    return _draw_until(draw, groups, settings.sites, settings.min_images, seed)


def _cut(sizes: Indices, shares: np.ndarray) -> Indices:
    """Return, for each of n consecutive groups, the share in which its first image is; the shares sum to 1."""
    cuts = (np.cumsum(shares) * sizes.sum()).astype(np.int64)[:-1]
    return np.searchsorted(cuts, np.cumsum(sizes) - sizes, side="right")


def _draw_until(
    draw: Callable[[np.random.Generator], Indices], groups: Groups, sites: int, min_images: int, seed: int
) -> Indices:
    images: np.ndarray = np.zeros(sites)
    for attempt in range(_DRAWS):
        dealt = draw(numpy_generator(seed, "partition", attempt))
        images = np.bincount(dealt, weights=groups.sizes, minlength=sites)
        if images.min() >= min_images:
            return dealt
    raise TooFewImagesError(images.astype(np.int64))


# By `data.partition.kind`; the kind "sites" needs no partitioner.
PARTITIONERS: Mapping[str, Callable[[Groups, Any, int], Indices]] = {
    "iid": deal_iid,
    "dirichlet": deal_dirichlet,
    "shards": deal_shards,
    "quantity": deal_quantity,
}
