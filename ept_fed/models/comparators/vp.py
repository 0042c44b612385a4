"""VP, which adds a border of trainable values to every image (visual prompting, Bahng et al. 2022)."""

import torch
from torch import Tensor, nn

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.backbones import Backbone
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["VisualPrompt"]


class VisualPrompt(TunedViT):
    """A model of images + border, the padding variant of Bahng et al. 2022, on normalised images of S × S pixels.

    The border starts normal with standard deviation 0.02, like the other prompts here. The authors use unit noise,
    which would hide most of a small image before training.

    Attributes:
        top: (3, p, S); bottom has the same shape.
        left: (3, S - 2p, p); right has the same shape.
    """

    method = "vp"

    def __init__(self, backbone: Backbone, *, num_classes: int, pad: int, seed: int = 0) -> None:
        """Draw the border.

        Raises:
            InputRefusedError: for a border that covers the whole image.
        """
        super().__init__(backbone, num_classes=num_classes, seed=seed, options={"pad": pad})
        side = backbone.input.size
        if 2 * pad >= side:
            fix = f"it covers the whole image of {side} pixels; use at most {(side - 1) // 2}, e.g. {side * 30 // 224}"
            raise InputRefusedError([Problem("model.method_options.pad", pad, fix)])
        generator = self.generator(seed)
        self.top = _draw((3, pad, side), generator)
        self.bottom = _draw((3, pad, side), generator)
        self.left = _draw((3, side - 2 * pad, pad), generator)
        self.right = _draw((3, side - 2 * pad, pad), generator)

    def method_tensors(self) -> dict[str, nn.Parameter]:
        """Return the four sides: top and bottom (3, p, S), left and right (3, S - 2p, p)."""
        return {"vp.top": self.top, "vp.bottom": self.bottom, "vp.left": self.left, "vp.right": self.right}

    def border(self) -> Tensor:
        """Return the tensor that is added to an image: (3, S, S), zero inside the border."""
        inside = self.left.new_zeros(3, self.left.shape[1], self.top.shape[2] - 2 * self.left.shape[2])
        middle = torch.cat([self.left, inside, self.right], dim=2)
        return torch.cat([self.top, middle, self.bottom], dim=1)

    @property
    def frozen_stages(self) -> int:
        """None: the border changes the images."""
        return 0

    def forward_suffix(self, x: Tensor) -> Tensor:
        """Return the backbone's features (B, D) of images (B, 3, S, S) with the border added."""
        features: Tensor = self.vit(x + self.border())
        return features


def _draw(shape: tuple[int, int, int], generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).normal_(0.0, 0.02, generator=generator))
