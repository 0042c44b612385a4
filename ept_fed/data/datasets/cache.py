"""Datasets in memory, whose images are decoded once and batched many times."""

import copy
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ept_fed.data.decoding.image_store import ImageStore
from ept_fed.data.records.records import ImageRecord
from ept_fed.seeds import derive_seed, numpy_generator

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
        self._digests: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.records)

    def subset(self, indices: Sequence[int]) -> "CachedDataset":
        """Return a dataset of some of these images, which are shared, not copied."""
        return CachedDataset(
            [self.records[index] for index in indices],
            [self._images[index] for index in indices],
            classes=self.classes,
            task=self.task,
            pipelines=self._pipelines,
        )

    def without_images(self) -> "CachedDataset":
        """Return a dataset of the same classes without images, to save memory where they are not used."""
        return self.subset(())

    def as_png(self, index: int) -> bytes:
        """Return one cached image, (H, W, 3), as PNG bytes; only for display at the site itself."""
        content = io.BytesIO()
        Image.fromarray(self._images[index].permute(1, 2, 0).numpy()).save(content, "PNG")
        return content.getvalue()

    @property
    def views(self) -> int:
        """The number of augmented views per image; 0 if every epoch augments anew."""
        return self._pipelines.views

    def batches(
        self,
        batch_size: int,
        *,
        order: Sequence[int] | None = None,
        augment_seed: int | None = None,
        view: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (B, 3, size, size) float32 images with their labels; the last batch may be smaller.

        Args:
            batch_size: B, at least 1.
            order: indices of the images to use, with repeats allowed; None is 0 … n - 1.
            augment_seed: seed of the random pipeline. The random numbers for an item depend only on this seed and on
                the item's position in `order`, not on the batch size or the thread. With views, they choose one of the
                image's views. None: the evaluation pipeline is used.
            view: the number of one view, of every image, instead of a random choice; only with views.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: must be at least 1")
        if view is not None and (augment_seed is None or not 0 <= view < self.views):
            raise ValueError(f"view = {view}: there are {self.views} augmented views")
        indices = range(len(self)) if order is None else order
        views: Sequence[int] = []
        if augment_seed is not None and self.views:
            drawn = numpy_generator(augment_seed, "views").integers(self.views, size=len(indices)).tolist()
            views = drawn if view is None else [view] * len(indices)
        for start in range(0, len(indices), batch_size):
            chosen = [int(index) for index in indices[start : start + batch_size]]
            yield self._inputs(chosen, start, augment_seed, views[start : start + batch_size]), self.labels[chosen]

    def _inputs(self, chosen: Sequence[int], start: int, augment_seed: int | None, views: Sequence[int]) -> Tensor:
        """Return the inputs (B, 3, size, size) of chosen images, the first of which has position `start`."""
        images = [self._images[index] for index in chosen]
        if augment_seed is None:
            return self._evaluate(images)
        if views:
            # A view depends on the image alone, so that it is the same in every run, at every site and position.
            digests = [self._image_digest(index).hex() for index in chosen]
            seeds = [derive_seed(0, "view", digest, view) for digest, view in zip(digests, views, strict=True)]
        else:
            seeds = [derive_seed(augment_seed, "augment", start + number) for number in range(len(chosen))]
        return _augment(self._pipelines, images, seeds)

    def _evaluate(self, images: Sequence[Tensor]) -> Tensor:
        from ept_fed.data.datasets.transforms import NORMALISE, RESIZE

        evaluation = self._pipelines.evaluation
        resized = [evaluation({"image": image}, start=RESIZE, end=NORMALISE)["image"] for image in images]
        batch: Tensor = evaluation({"image": torch.stack(resized)}, start=NORMALISE)["image"]
        return batch

    def _image_digest(self, index: int) -> bytes:
        """Return the SHA-256 of a cached image, its size included."""
        if index not in self._digests:
            image = self._images[index]
            content = f"{tuple(image.shape)}\0".encode() + image.contiguous().numpy().tobytes()
            self._digests[index] = hashlib.sha256(content).digest()
        return self._digests[index]

    def _view_digest(self, index: int, view: int | None) -> bytes:
        """Return the SHA-256 of an image and of how a view of it is made; None is the view of the evaluation."""
        made = f"{self._pipelines.key}\0{view}\0".encode()
        return hashlib.sha256(made + self._image_digest(index)).digest()

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


def _augment(pipelines: "Pipelines", images: Sequence[Tensor], seeds: Sequence[int]) -> Tensor:
    """Run a copy of the random pipeline, reseeded for every image.

    A copy is needed because MONAI keeps the random state inside the transforms, and two sites may train in two
    threads.
    """
    random = copy.deepcopy(pipelines.random)
    # The last step runs once per batch, because torch's threads cost more than the arithmetic of one image.
    normalise = len(random.transforms) - 1
    augmented = []
    for image, seed in zip(images, seeds, strict=True):
        random.set_random_state(seed=seed % 2**32)
        augmented.append(random({"image": image}, end=normalise)["image"])
    batch: Tensor = random({"image": torch.stack(augmented)}, start=normalise)["image"]
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
