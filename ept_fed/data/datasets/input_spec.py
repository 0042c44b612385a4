"""The input format of a backbone; this module imports no MONAI, so that model code can use it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["InputSpec"]


@dataclass(frozen=True)
class InputSpec:
    """Input format of a backbone: square RGB images of `size` pixels, resized, scaled to 0–1 and normalised.

    Attributes:
        size: pixels per side.
        mean: per channel, on the 0–1 scale.
        std: per channel, on the 0–1 scale.
        interpolation: "bicubic" or "bilinear"; both use antialiasing when they shrink an image.

    Raises:
        ValueError: if the size is below 1, there are not three channels, a std is not positive, or the interpolation
            is unknown.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size = {self.size}: must be at least 1 pixel")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError(f"mean = {self.mean}, std = {self.std}: need one number for each of three channels")
        if min(self.std) <= 0:
            raise ValueError(f"std = {self.std}: must be positive")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation = '{self.interpolation}': use 'bicubic' or 'bilinear'")

    @classmethod
    def from_pretrained_cfg(cls, cfg: Mapping[str, Any] | object, size: int) -> "InputSpec":
        """Read 'mean', 'std' and 'interpolation' from a timm PretrainedCfg, or from the dict that models have.

        Raises:
            ValueError: for a missing entry, or an entry that `InputSpec` refuses.
        """
        entries = cfg if isinstance(cfg, Mapping) else vars(cfg)
        missing = [key for key in ("mean", "std", "interpolation") if entries.get(key) is None]
        if missing:
            raise ValueError(f"the pretrained configuration has no {', '.join(missing)}")
        mean = tuple(float(value) for value in entries["mean"])
        std = tuple(float(value) for value in entries["std"])
        return cls(size=size, mean=mean, std=std, interpolation=str(entries["interpolation"]))
