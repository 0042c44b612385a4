"""A dataset whose batches are outputs of the frozen first layers instead of images."""

from collections.abc import Sequence

from torch import Tensor

from ept_fed.data.datasets.cache import CachedDataset
from ept_fed.data.datasets.prefix_store import FrozenPrefix, PrefixStore

__all__ = ["PrefixedDataset"]


class PrefixedDataset(CachedDataset):
    """The images of a dataset, each run through the frozen layers once per view.

    Batches are (B, …) outputs of the prefix, which every model accepts in place of images. Fresh augmentation has
    nothing to keep, so without views the training batches remain images.
    """

    def __init__(self, images: CachedDataset, prefix: FrozenPrefix, store: PrefixStore) -> None:
        super().__init__(
            images.records, images._images, classes=images.classes, task=images.task, pipelines=images._pipelines
        )
        self._prefix, self._store = prefix, store

    def _inputs(self, chosen: Sequence[int], start: int, augment_seed: int | None, views: Sequence[int]) -> Tensor:
        if augment_seed is not None and not views:
            return super()._inputs(chosen, start, augment_seed, views)

        def draw(places: Sequence[int]) -> Tensor:
            of = [views[place] for place in places] if views else []
            return super(PrefixedDataset, self)._inputs([chosen[place] for place in places], 0, augment_seed, of)

        keys = [self._view_digest(index, views[place] if views else None) for place, index in enumerate(chosen)]
        return self._store.fetch(self._prefix, keys, draw)
