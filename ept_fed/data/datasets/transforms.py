"""MONAI dictionary pipelines from a decoded image to a backbone's input.

Every transform reads and writes the key "image" and works on plain uint8 torch tensors, without MONAI's
MetaTensor. 2-D photographs have no affine matrix to track, and tracking costs more than the resize. Random numbers
come from MONAI: a pipeline is seeded by `set_random_state` and does not use a global generator.

Differences from the paper's pipeline (section 4.1; torchvision on PIL images):

* The resize works on uint8 tensors with antialiasing, which differs from PIL by rounding.
* An image whose short side exceeds twice the input size is shrunk to that size once, before any crop, so that it fits
  in memory. Small crops of it are therefore less sharp than crops of the original.
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, MapTransform, RandomizableTransform
from torch import Tensor
from torch.nn import functional as F

from ept_fed.config.data import AugmentationSettings
from ept_fed.data.datasets.input_spec import InputSpec

__all__ = [
    "NORMALISE",
    "RESIZE",
    "LimitSized",
    "Normalised",
    "Pipelines",
    "RandomHorizontalFlipd",
    "RandomResizedCropd",
    "ResizeSquared",
    "ToChannelFirstd",
    "build_evaluation_transforms",
    "build_pipelines",
    "build_training_transforms",
]

Item = dict[Hashable, Any]

# Positions in the evaluation pipeline; MONAI's Compose can run a part of itself, `pipeline(item, start=RESIZE)`.
RESIZE = 1
NORMALISE = 2

_ASPECT_RATIO = (3 / 4, 4 / 3)
_CROP_TRIES = 10


class ToChannelFirstd(MapTransform):
    """(H, W, 3) uint8 array -> (3, H, W) uint8 tensor with shared memory, the layout that the resize expects."""

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """Return the item with its image channel first."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = torch.from_numpy(np.ascontiguousarray(item[key])).permute(2, 0, 1)
        return item


class LimitSized(MapTransform):
    """(3, H, W) uint8 -> the same, with the shorter side at most `short_side`; never enlarged."""

    def __init__(self, keys: str, short_side: int, interpolation: str) -> None:
        super().__init__(keys)
        self.short_side = short_side
        self.interpolation = interpolation

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """Return the item with its image shrunk if it is too large."""
        item = dict(data)
        for key in self.key_iterator(item):
            height, width = item[key].shape[1:]
            scale = self.short_side / min(height, width)
            if scale < 1.0:
                target = (round(height * scale), round(width * scale))
                item[key] = _resize(item[key], target, self.interpolation)
        return item


class ResizeSquared(MapTransform):
    """(3, H, W) uint8 -> (3, size, size) uint8, antialiased; as in the paper, the aspect ratio is not kept."""

    def __init__(self, keys: str, size: int, interpolation: str) -> None:
        super().__init__(keys)
        self.size = size
        self.interpolation = interpolation

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """Return the item with its image resized."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = _resize(item[key], (self.size, self.size), self.interpolation)
        return item


class Normalised(MapTransform):
    """(…, 3, H, W) uint8 -> float32, (x / 255 - mean) / std per channel."""

    def __init__(self, keys: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(keys)
        self.scale = 1.0 / (255.0 * torch.tensor(std)[:, None, None])
        self.offset = torch.tensor(mean)[:, None, None] / torch.tensor(std)[:, None, None]

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """Return the item with its image, or batch of images, normalised."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = item[key].to(torch.float32).mul_(self.scale).sub_(self.offset)
        return item


class RandomResizedCropd(RandomizableTransform, MapTransform):
    """(3, H, W) uint8 -> (3, size, size) uint8: a random part of the image, resized, by torchvision's rule.

    The crop's area is uniform in `scale` times the image's area, and its aspect ratio is log-uniform in 3:4 to 4:3. A
    crop that does not fit is drawn again, up to ten times. After that the largest centred crop of an allowed ratio is
    used.
    """

    def __init__(self, keys: str, size: int, scale: tuple[float, float], interpolation: str) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.size = size
        self.scale = scale
        self.interpolation = interpolation
        self.box = (0, 0, 0, 0)

    def randomize(self, data: Tensor) -> None:
        """Draw the box (top, left, height, width) for an image (3, H, W)."""
        height, width = data.shape[1:]
        low, high = (math.log(ratio) for ratio in _ASPECT_RATIO)
        for _ in range(_CROP_TRIES):
            area = height * width * self.R.uniform(*self.scale)
            ratio = math.exp(self.R.uniform(low, high))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top, left = self.R.randint(height - crop_height + 1), self.R.randint(width - crop_width + 1)
                self.box = (int(top), int(left), crop_height, crop_width)
                return
        crop_height = min(height, round(width / _ASPECT_RATIO[0]))
        crop_width = min(width, round(height * _ASPECT_RATIO[1]))
        self.box = ((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """Return the item with a crop of its image; several keys use the same box."""
        item = dict(data)
        self.randomize(item[self.first_key(item)])
        top, left, height, width = self.box
        for key in self.key_iterator(item):
            part = item[key][:, top : top + height, left : left + width]
            item[key] = _resize(part, (self.size, self.size), self.interpolation)
        return item


class RandomHorizontalFlipd(RandomizableTransform, MapTransform):
    """(3, H, W) -> the same, mirrored left to right with probability 0.5."""

    def __init__(self, keys: str) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=0.5)

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """Return the item with its image mirrored or unchanged."""
        item = dict(data)
        self.randomize(None)
        for key in self.key_iterator(item):
            item[key] = item[key].flip(-1) if self._do_transform else item[key]
        return item


@dataclass(frozen=True)
class Pipelines:
    """The pipelines from images to inputs.

    Attributes:
        evaluation: pipeline for evaluation.
        deterministic: first part of the training pipeline; it runs once per image.
        random: second part of the training pipeline; it runs once per image and epoch, or once per view.
        views: number of augmented views per image; 0 augments anew in every epoch.
        key: identifies the settings of all pipelines.
    """

    evaluation: Compose
    deterministic: Compose
    random: Compose
    views: int
    key: str


def build_evaluation_transforms(spec: InputSpec) -> Compose:
    """Build (H, W, 3) uint8 -> (3, size, size) float32: channel first, resize, normalise."""
    return Compose(
        [
            ToChannelFirstd("image"),
            ResizeSquared("image", spec.size, spec.interpolation),
            Normalised("image", spec.mean, spec.std),
        ]
    )


def build_training_transforms(spec: InputSpec, augmentation: AugmentationSettings) -> tuple[Compose, Compose]:
    """Build the two halves of the training pipeline.

    Returns:
        deterministic: {"image": (H, W, 3) uint8} -> (3, H', W') uint8 with short side at most 2 · size; to be run once
        per image. random: its result -> (3, size, size) float32; to be seeded and run once per image and epoch.
    """
    limit = LimitSized("image", 2 * spec.size, spec.interpolation)
    flip = [RandomHorizontalFlipd("image")] if augmentation.flip else []
    random = Compose(
        [
            RandomResizedCropd("image", spec.size, augmentation.crop_scale, spec.interpolation),
            *flip,
            Normalised("image", spec.mean, spec.std),
        ]
    )
    return Compose([ToChannelFirstd("image"), limit]), random


def build_pipelines(spec: InputSpec, augmentation: AugmentationSettings) -> Pipelines:
    """Build all pipelines of a run."""
    deterministic, random = build_training_transforms(spec, augmentation)
    key = f"{spec} crop {augmentation.crop_scale} flip {augmentation.flip}"
    return Pipelines(build_evaluation_transforms(spec), deterministic, random, augmentation.views, key)


def _resize(image: Tensor, target: tuple[int, int], interpolation: str) -> Tensor:
    """Resize (3, H, W) uint8 to (3, *target) uint8, antialiased; return it unchanged if the size is equal."""
    if tuple(image.shape[1:]) == target:
        return image
    return F.interpolate(image[None], size=target, mode=interpolation, antialias=True, align_corners=False)[0]
