"""Feature shift: a simulated scanner per site, applied to each image when it is read, before any cache.

J is the image on the 0–1 scale, in a wider or narrower field of view. The scanner returns

    K = cast · gain · blur(J)^gamma + noise

clipped to 0–1 and stored in 8 bits. The profile derives from the run's seed and the site, and the noise derives from
the seed and the image's name. Reading an image twice gives the same pixels, and no global generator is used.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.networks.layers import GaussianFilter
from monai.transforms import Compose, MapTransform
from torch import Tensor
from torch.nn import functional as F

from ept_fed.config.partition import FeatureShiftSettings
from ept_fed.data.decoding.image_store import ImageStore
from ept_fed.data.records.records import ImageRecord
from ept_fed.data.sources.simulated_scanner import AcquisitionProfile
from ept_fed.seeds import numpy_generator

__all__ = ["ExposureD", "FieldOfViewD", "ShiftedImages", "build_scanner", "draw_profile", "shift_features"]

Item = dict[Hashable, Any]


def draw_profile(settings: FeatureShiftSettings, seed: int, site: str) -> AcquisitionProfile:
    """Draw the scanner of a site, with each number uniform in its range.

    The result depends only on the seed and the site's name.
    """
    rng = numpy_generator(seed, "feature shift", site)
    return AcquisitionProfile(
        gain=float(rng.uniform(*settings.gain)),
        gamma=float(rng.uniform(*settings.gamma)),
        blur=float(rng.uniform(*settings.blur)),
        noise=float(rng.uniform(*settings.noise)),
        field_of_view=float(rng.uniform(*settings.field_of_view)),
    )


class FieldOfViewD(MapTransform):
    """(3, H, W) float32 -> the same size, with a field of view `field_of_view` times as wide.

    Outside the image its border is repeated.
    """

    def __init__(self, keys: str, field_of_view: float) -> None:
        super().__init__(keys)
        self.field_of_view = field_of_view

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """Return the item with its image zoomed about the centre, bilinearly."""
        item = dict(data)
        for key in self.key_iterator(item):
            image: Tensor = item[key][None]
            view = torch.tensor([[[self.field_of_view, 0.0, 0.0], [0.0, self.field_of_view, 0.0]]])
            grid = F.affine_grid(view, list(image.shape), align_corners=False)
            item[key] = F.grid_sample(image, grid, padding_mode="border", align_corners=False)[0]
        return item


class ExposureD(MapTransform):
    """(3, H, W) float32 on 0–1 -> the same after blur, gamma, gain, cast and noise.

    The noise is `data["noise"]`, (3, H, W).
    """

    def __init__(self, keys: str, profile: AcquisitionProfile) -> None:
        super().__init__(keys)
        self.profile = profile
        self.cast = torch.tensor(profile.cast)[:, None, None]

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """Return the item with its image after the scanner's exposure."""
        item = dict(data)
        profile = self.profile
        for key in self.key_iterator(item):
            scene: Tensor = item[key]
            pixels = profile.blur * scene.shape[2]
            if pixels > 0:
                scene = GaussianFilter(2, pixels)(scene[None])[0]
            exposed = self.cast * profile.gain * scene.clamp(0.0, 1.0) ** profile.gamma
            item[key] = (exposed + profile.noise * item["noise"]).clamp(0.0, 1.0)
        return item


def build_scanner(profile: AcquisitionProfile) -> Compose:
    """Build the pipeline of a scanner.

    Its input is {"image": (3, H, W) float32 on 0–1, "noise": standard normal of that shape}, its output the image
    after the scanner.
    """
    return Compose([FieldOfViewD("image", profile.field_of_view), ExposureD("image", profile)])


class ShiftedImages:
    """An image store that applies the scanner of its site to each image.

    Args:
        store: the original images.
        sites: site of each image.
        profiles: scanner of each site.
        seed: the run's seed, for the noise.
    """

    def __init__(
        self, store: ImageStore, sites: Mapping[str, str], profiles: Mapping[str, AcquisitionProfile], seed: int
    ) -> None:
        self._store = store
        self._sites = sites
        self._scanners = {site: build_scanner(profile) for site, profile in profiles.items()}
        self._seed = seed

    def read(self, image: str) -> np.ndarray:
        """Read one image and apply its site's scanner; see `ImageStore.read`."""
        pixels = torch.from_numpy(self._store.read(image)).permute(2, 0, 1).to(torch.float32) / 255.0
        rng = numpy_generator(self._seed, "feature shift noise", image)
        noise = torch.from_numpy(rng.standard_normal(tuple(pixels.shape), dtype=np.float32))
        seen = self._scanners[self._sites[image]]({"image": pixels, "noise": noise})["image"]
        return (255.0 * seen).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()

    def find_missing(self, images: Iterable[str]) -> list[str]:
        """Return those of `images` that the original store does not contain."""
        return self._store.find_missing(images)

    def mode(self, image: str) -> str:
        """Return the storage mode in the original store."""
        return self._store.mode(image)


def shift_features(
    store: ImageStore, records: Sequence[ImageRecord], settings: FeatureShiftSettings, seed: int
) -> ShiftedImages:
    """Return a store that applies a separate scanner for every site of `records`."""
    sites = {record.image: record.site for record in records}
    profiles = {site: draw_profile(settings, seed, site) for site in sorted(set(sites.values()))}
    return ShiftedImages(store, sites, profiles, seed)
