"""The base of methods that train tensors of the backbone: they train copies, so the shared backbone never changes."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.backbones import Backbone
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["BackboneCopies"]


class BackboneCopies(TunedViT):
    """A model that runs the backbone with its own trained copies of some tensors.

    The copies replace the original tensors only during a forward pass. No other thread may use the backbone at that
    time.
    """

    def __init__(self, backbone: Backbone, *, num_classes: int, seed: int, chosen: Callable[[str], bool]) -> None:
        """Copy the parameters of the backbone whose names `chosen` accepts.

        Raises:
            InputRefusedError: if the backbone has no such parameters.
        """
        super().__init__(backbone, num_classes=num_classes, seed=seed)
        sources = {name: tensor for name, tensor in self.vit.named_parameters() if chosen(name)}
        if not sources:
            fix = f"{backbone.name} has none of the tensors that this method trains; use another method or backbone"
            raise InputRefusedError([Problem("model.method", self.method, fix)])
        self._names = tuple(sources)
        self.copies = nn.ParameterList([nn.Parameter(tensor.detach().clone()) for tensor in sources.values()])

    def method_tensors(self) -> dict[str, nn.Parameter]:
        """Return the copies as `backbone.<name>`, with the shapes of the originals."""
        return {f"backbone.{name}": tensor for name, tensor in zip(self._names, self.copies, strict=True)}

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features (B, D) of images (B, 3, height, width), computed with the copies."""
        features: Tensor = functional_call(self.vit, dict(zip(self._names, self.copies, strict=True)), (images,))
        return features
