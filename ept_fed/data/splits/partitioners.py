"""Ways to deal whole groups to virtual sites: pure functions over arrays, one per kind of `data.partition`.

Where flwr-datasets 0.6 has a definition it is followed, so that results compare, with two differences: what is cut is a
list of groups instead of single images (a group goes where its first image falls), and where images come with a split,
each split is cut alike, so that a site's test images are skewed as its training images are. For groups of one image
and no splits, the sites' shares of each class are those of flwr-datasets, in distribution.
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
    """G groups, sorted by split and label and shuffled within, so that any cut through them is random.

    Attributes:
        sizes: (G,) images per group, each at least 1.
        labels: (G,) class index of a group's first image, -1 if it has none.
        splits: (G,) a number per split that groups come with, equal if they come without.
    """

    sizes: Indices
    labels: Indices
    splits: Indices

    def __len__(self) -> int:
        return len(self.sizes)

    def strata(self, *, by_label: bool) -> Iterator[Indices]:
        """Yield the positions of the groups of each split, or of each label and split; label by label, as flwr does."""
        labels = self.labels if by_label else np.zeros_like(self.labels)
        for label in np.unique(labels):
            for split in np.unique(self.splits):
                chosen = np.flatnonzero((labels == label) & (self.splits == split))
                if len(chosen):
                    yield chosen


class TooFewImagesError(Exception):
    """No draw gave every site its images.

    Attributes:
        images: (S,) images per site in the last draw.
    """

    def __init__(self, images: Indices) -> None:
        super().__init__(f"the smallest site has {images.min()} images")
        self.images = images


def deal_iid(groups: Groups, settings: IIDPartition, _seed: int) -> Indices:
    """Deal like cards: per split and label the sites differ by one group at most; flwr's IidPartitioner.

    Returns:
        (G,) the site of each group, 0 … sites - 1; the same for every function here.
    """
    return np.arange(len(groups)) % settings.sites


def deal_dirichlet(groups: Groups, settings: DirichletPartition, seed: int) -> Indices:
    """Cut each class into shares p ~ Dirichlet(alpha, …, alpha) over the sites; flwr's DirichletPartitioner.

    The draw is repeated until every site has `min_images`, ten times at most. With `self_balancing`, a site that holds
    more than the average takes nothing of the classes that follow (Yurochkin et al. 2019, arXiv 1905.12022, as in
    their code).

    Raises:
        TooFewImagesError: if the last draw leaves a site with fewer images.
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

    McMahan et al. 2017 (arXiv 1602.05629), flwr's ShardPartitioner; flwr drops the images that remain when the number
    is not a multiple, here shards differ by one image and nothing is lost.
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
    """Give sites shares proportional to exp(sigma · z), z standard normal, of every class alike.

    Log-normal sizes are those of LEAF (arXiv 1812.01097) and of FedProx's synthetic data (arXiv 1812.06127). flwr has
    sizes that grow linearly, squared or exponentially, but no random ones.

    Raises:
        TooFewImagesError: as `deal_dirichlet`.
    """

    def draw(rng: np.random.Generator) -> Indices:
        weights: np.ndarray = np.exp(settings.sigma * rng.standard_normal(settings.sites))
        dealt = np.empty(len(groups), dtype=np.int64)
        for chosen in groups.strata(by_label=True):
            # A new order of sites per class, or what rounding leaves over would always fall to the same ones.
            order = rng.permutation(settings.sites)
            dealt[chosen] = order[_cut(groups.sizes[chosen], weights[order] / weights.sum())]
        return dealt

    return _draw_until(draw, groups, settings.sites, settings.min_images, seed)


def _cut(sizes: Indices, shares: np.ndarray) -> Indices:
    """Return for each of n groups in a row the share that its first image falls into; shares sum to 1."""
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


# By `data.partition.kind`; "sites" deals nothing.
PARTITIONERS: Mapping[str, Callable[[Groups, Any, int], Indices]] = {
    "iid": deal_iid,
    "dirichlet": deal_dirichlet,
    "shards": deal_shards,
    "quantity": deal_quantity,
}
