"""Datasets in memory, whose images are decoded once and batched many times."""

import copy
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ept_fed.data.decoding.image_store import ImageStore
from ept_fed.data.records.records import ImageRecord
from ept_fed.seeds import derive_seed

if TYPE_CHECKING:
    from ept_fed.data.datasets.transforms import Pipelines

__all__ = ["CachedDataset", "load_image", "pool"]


class CachedDataset:
    """Images and labels of some records, cached as uint8 (a quarter of float32) and normalised per batch.

    Attributes:
        records: the n images.
        labels: (n,) int64 class indices for single_label; (n, C) float32 of 0 and 1 for multi_label.
        classes: the C class names.
        task: "single_label" or "multi_label".

    Args:
        images: n tensors (3, H, W) uint8, of any sizes; `load_image` makes them.
        pipelines: see `ept_fed.data.datasets.transforms`.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        images: Sequence[Tensor],
        *,
        classes: tuple[str, ...],
        task: str,
        pipelines: "Pipelines",
    ) -> None:
        if len(records) != len(images):
            raise ValueError(f"{len(records)} records but {len(images)} images")
        self.records = tuple(records)
        self.classes = classes
        self.task = task
        self.labels = _stack_labels(self.records, len(classes), task)
        self._images = tuple(images)
        self._pipelines = pipelines

    def __len__(self) -> int:
        return len(self.records)

    def without_images(self) -> "CachedDataset":
        """Return a dataset of the same classes without images, to save memory where they are not used."""
        return CachedDataset([], [], classes=self.classes, task=self.task, pipelines=self._pipelines)

    def as_png(self, index: int) -> bytes:
        """Return one cached image, (H, W, 3), as PNG bytes; only for display at the site itself."""
        content = io.BytesIO()
        Image.fromarray(self._images[index].permute(1, 2, 0).numpy()).save(content, "PNG")
        return content.getvalue()

    def batches(
        self, batch_size: int, *, order: Sequence[int] | None = None, augment_seed: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (B, 3, size, size) float32 images with their labels; the last batch may be smaller.

        Args:
            batch_size: B, at least 1.
            order: indices of the images to use, with repeats allowed; None is 0 … n - 1.
            augment_seed: seed of the random pipeline. The random numbers for an item depend only on this seed and on
                the item's position in `order`, not on the batch size or the thread. None: the evaluation pipeline is
                used.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: must be at least 1")
        indices = range(len(self)) if order is None else order
        make = self._evaluate if augment_seed is None else _Augmenter(self._pipelines, augment_seed)
        for start in range(0, len(indices), batch_size):
            chosen = [int(index) for index in indices[start : start + batch_size]]
            yield make(start, [self._images[index] for index in chosen]), self.labels[chosen]

    def _evaluate(self, _start: int, images: Sequence[Tensor]) -> Tensor:
        from ept_fed.data.datasets.transforms import NORMALISE, RESIZE

        evaluation = self._pipelines.evaluation
        resized = [evaluation({"image": image}, start=RESIZE, end=NORMALISE)["image"] for image in images]
        batch: Tensor = evaluation({"image": torch.stack(resized)}, start=NORMALISE)["image"]
        return batch

    @classmethod
    def _join(cls, parts: Sequence["CachedDataset"]) -> "CachedDataset":
        first = parts[0]
        return cls(
            [record for part in parts for record in part.records],
            [image for part in parts for image in part._images],
            classes=first.classes,
            task=first.task,
            pipelines=first._pipelines,
        )


class _Augmenter:
    """Runs a copy of the random pipeline, reseeded for every position of an epoch.

    A copy is needed because MONAI keeps the random state inside the transforms, and two sites may train in two
    threads.
    """

    def __init__(self, pipelines: "Pipelines", seed: int) -> None:
        self._random = copy.deepcopy(pipelines.random)
        # The last step runs once per batch, because torch's threads cost more than the arithmetic of one image.
        self._normalise = len(self._random.transforms) - 1
        self._seed = seed

    def __call__(self, start: int, images: Sequence[Tensor]) -> Tensor:
        augmented = []
        for position, image in enumerate(images, start):
            self._random.set_random_state(seed=derive_seed(self._seed, "augment", position) % 2**32)
            augmented.append(self._random({"image": image}, end=self._normalise)["image"])
        batch: Tensor = self._random({"image": torch.stack(augmented)}, start=self._normalise)["image"]
        return batch


def load_image(image: str, store: ImageStore, pipelines: "Pipelines", *, training: bool) -> Tensor:
    """Read one image and apply the deterministic transforms; return (3, H, W) uint8.

    For training, the short side of the result is at most twice the input size. Otherwise it has the input size.

    Raises:
        UnreadableImageError: from the store.
    """
    from ept_fed.data.datasets.transforms import NORMALISE

    item = {"image": store.read(image)}
    item = pipelines.deterministic(item) if training else pipelines.evaluation(item, end=NORMALISE)
    cached: Tensor = item["image"]
    return cached


def pool(sites: Iterable[CachedDataset]) -> CachedDataset:
    """Concatenate datasets for the centralised baseline; the images are shared, not copied.

    Raises:
        ValueError: if there is no dataset, or if the datasets have different classes or tasks.
    """
    parts = list(sites)
    kinds = Counter((part.classes, part.task) for part in parts)
    if len(kinds) != 1:
        raise ValueError(f"can pool datasets of one task and one list of classes, not of {len(kinds)}")
    return CachedDataset._join(parts)


def _stack_labels(records: Sequence[ImageRecord], num_classes: int, task: str) -> Tensor:
    if task == "single_label":
        return torch.tensor([record.labels[0] for record in records], dtype=torch.int64)
    labels = torch.zeros(len(records), num_classes, dtype=torch.float32)
    for row, record in enumerate(records):
        labels[row, list(record.labels)] = 1.0
    return labels
