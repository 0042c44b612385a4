"""The base of methods that train tensors of the backbone: they train copies, so the shared backbone never changes."""

from collections.abc import Callable

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.backbones import Backbone
from ept_fed.models.blocks import run_stages
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["BackboneCopies"]

# Parts of a timm ViT after its blocks; every other part except the blocks is before them.
_POOLING = ("norm", "fc_norm", "attn_pool", "head_drop", "head")


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
        self._frozen = min(_stage_of(name, len(self.vit.blocks)) for name in sources)
        self.copies = nn.ParameterList([nn.Parameter(tensor.detach().clone()) for tensor in sources.values()])

    def method_tensors(self) -> dict[str, nn.Parameter]:
        """Return the copies as `backbone.<name>`, with the shapes of the originals."""
        return {f"backbone.{name}": tensor for name, tensor in zip(self._names, self.copies, strict=True)}

    @property
    def frozen_stages(self) -> int:
        """The stages before the first copied tensor."""
        return self._frozen

    def forward_suffix(self, x: Tensor) -> Tensor:
        """Return the features (B, D) of the prefix's output, computed with the copies."""
        copies = {f"vit.{name}": tensor for name, tensor in zip(self._names, self.copies, strict=True)}
        # Not an attribute, because the backbone would then be a part of this model twice.
        features: Tensor = functional_call(_Suffix(self.vit, self._frozen), copies, (x,))
        return features


class _Suffix(nn.Module):
    """The stages of a backbone from one stage on, as a module whose tensors can be replaced."""

    def __init__(self, vit: VisionTransformer, first: int) -> None:
        super().__init__()
        self.vit = vit
        self._stages = range(first, len(vit.blocks) + 2)

    def forward(self, x: Tensor) -> Tensor:
        return run_stages(self.vit, x, self._stages)


def _stage_of(name: str, blocks: int) -> int:
    """Return the stage that uses a tensor of the backbone first; see `run_stages`."""
    part, _, rest = name.partition(".")
    if part == "blocks":
        return 1 + int(rest.partition(".")[0])
    return blocks + 1 if part in _POOLING else 0
