"""Linear probing, which trains only the head, on frozen features (as in Zu et al. 2024, Table 1)."""

from torch import Tensor, nn

from ept_fed.models.backbones import Backbone
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["Linear"]


class Linear(TunedViT):
    """A model that trains only a linear head; it is the baseline of all other methods."""

    method = "linear"

    def __init__(self, backbone: Backbone, *, num_classes: int, seed: int = 0) -> None:
        """Draw the head."""
        super().__init__(backbone, num_classes=num_classes, seed=seed)

    def method_tensors(self) -> dict[str, nn.Parameter]:
        """Return an empty dict: only the head is trained."""
        return {}

    @property
    def frozen_stages(self) -> int:
        """All of them."""
        return len(self.vit.blocks) + 2

    def forward_suffix(self, x: Tensor) -> Tensor:
        """Return the backbone's features (B, D) unchanged."""
        return x
