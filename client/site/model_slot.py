"""One model in memory that any number of sites use in turn."""

from collections.abc import Iterator
from contextlib import contextmanager

from client.site.state_store import SiteState, Tensors, capture_model, restore_model
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["ModelSlot"]


class ModelSlot:
    """A model, and the tensors that every site starts from.

    Attributes:
        model: the frozen backbone with the method's trainable tensors and the head. Its tensors are those of the last
            holder; only `hold` gives those of a site.
        start: the initial tensors of every site.
    """

    def __init__(self, model: TunedViT) -> None:
        """Take the model; its current tensors are the start of every site."""
        self.model = model
        self.start: Tensors = capture_model(model)
        self._holder: str | None = None

    @contextmanager
    def hold(self, holder: str, state: SiteState | None) -> Iterator[TunedViT]:
        """Lend the model with the tensors of a state, or of the start, until the end of the `with` block.

        Raises:
            RuntimeError: if the model is lent already.
        """
        if self._holder is not None:
            raise RuntimeError(f"{holder} cannot use the model while {self._holder} holds it")
        self._holder = holder
        try:
            restore_model(self.model, self.start if state is None else state.tensors)
            yield self.model
        finally:
            self._holder = None
