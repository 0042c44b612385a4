"""Methods that train some of the backbone's own tensors: they hold copies, and the shared backbone stays as it was."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.backbones import Backbone
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["BackboneCopies"]


class BackboneCopies(TunedViT):
    """The backbone computes with this model's copies in place of the tensors they were copied from.

    They take their places for the length of one forward pass, in which no other thread may use the backbone.
    """

    def __init__(self, backbone: Backbone, *, num_classes: int, seed: int, chosen: Callable[[str], bool]) -> None:
        """Copy the parameters of the backbone whose names are chosen.

        Raises:
            InputRefusedError: if the backbone has none of these.
        """
        super().__init__(backbone, num_classes=num_classes, seed=seed)
        sources = {name: tensor for name, tensor in self.vit.named_parameters() if chosen(name)}
        if not sources:
            fix = f"{backbone.name} has no tensors of the kind that this method trains; take another method or backbone"
            raise InputRefusedError([Problem("model.method", self.method, fix)])
        self._names = tuple(sources)
        self.copies = nn.ParameterList([nn.Parameter(tensor.detach().clone()) for tensor in sources.values()])

    def method_tensors(self) -> dict[str, nn.Parameter]:
        """Return the copies as `backbone.<name>`, shaped as in the backbone."""
        return {f"backbone.{name}": tensor for name, tensor in zip(self._names, self.copies, strict=True)}

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features (B, D), under the copies, of images (B, 3, height, width)."""
        features: Tensor = functional_call(self.vit, dict(zip(self._names, self.copies, strict=True)), (images,))
        return features
