"""One model in memory that any number of sites use in turn."""

from client.site.state_store import capture_model
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["ModelSlot"]


class ModelSlot:
    """A model, and the site whose tensors are in it.

    Attributes:
        model: the frozen backbone with the method's trainable tensors and the head.
        holder: the site whose tensors are in the model; None if there is none.
        start: the initial tensors of every site.
    """

    def __init__(self, model: TunedViT) -> None:
        """Take the model; its current tensors are the start of every site."""
        self.model = model
        self.holder: object | None = None
        self.start = capture_model(model)
