"""One model in memory, in which any number of sites take turns."""

from client.site.state_store import capture_model
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["ModelSlot"]


class ModelSlot:
    """A model, and whose tensors are in it.

    Attributes:
        model: what the method trains, and the head, around the frozen backbone.
        holder: whose tensors are in it; None if nobody's.
        start: the tensors that every site begins with.
    """

    def __init__(self, model: TunedViT) -> None:
        """Take the model as every site's start."""
        self.model = model
        self.holder: object | None = None
        self.start = capture_model(model)
