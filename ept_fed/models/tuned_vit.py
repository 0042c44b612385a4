"""What every method is to the rest of the code: a module around a shared frozen backbone, and what it would send."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ept_fed.models.backbones import Backbone
from ept_fed.seeds import derive_seed

__all__ = ["TunedViT"]


class TunedViT(nn.Module, ABC):
    """A frozen backbone, what a method trains in or around it, and a linear head.

    Several of these may share one backbone: none writes to its tensors. A method that trains some of them trains its
    own copies. Exactly the method's tensors and the head require gradients; the backbone stays in evaluation mode
    whatever `train` says. A subclass gives `method`, `method_tensors` and `forward_features`.

    Attributes:
        method: its name in `ept_fed.catalog.methods.METHODS`.
        backbone: the frozen backbone and its digest.
        vit: the backbone's module.
        head: linear, D -> C, on the features of `forward_features`.
        options: the method's own numbers.
    """

    method: ClassVar[str]

    def __init__(
        self, backbone: Backbone, *, num_classes: int, seed: int, options: Mapping[str, float] | None = None
    ) -> None:
        """Take the backbone, and draw the head from `seed`; the subclass draws the rest from `self.generator(seed)`."""
        super().__init__()
        self.backbone = backbone
        self.vit = backbone.vit
        self.options = dict(options or {})
        self.head = _create_head(int(self.vit.num_features), num_classes, derive_seed(seed, "head"))

    @abstractmethod
    def method_tensors(self) -> dict[str, nn.Parameter]:
        """Return what is trained beside the head, by the name under which it travels, in the order of the layout."""

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features (B, D) that the head sees, of images (B, 3, height, width)."""

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.head.weight.device

    def train(self, mode: bool = True) -> "TunedViT":
        """Switch the head and the method's own modules; a frozen backbone has neither dropout nor stochastic depth."""
        super().train(mode)
        self.vit.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, 3, height, width), returning logits (B, C)."""
        logits: Tensor = self.head(self.forward_features(images))
        return logits

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return what is trained, by the kind that has a learning rate of its own; see `build_optimizer`."""
        groups = {"method": list(self.method_tensors().values()), "head": list(self.head.parameters())}
        return {kind: parameters for kind, parameters in groups.items() if parameters}

    def meaning(self) -> tuple[str, ...]:
        """Return what the layout must say besides names and shapes for two sites to mean the same."""
        return (f"method {self.method}", *(f"{name} {value:g}" for name, value in sorted(self.options.items())))

    def describe(self) -> dict[str, Any]:
        """Return what a released model's metadata says about the method."""
        return {"method": self.method, "method_options": self.options}

    def folded_tensors(self) -> dict[str, Tensor]:
        """Return the method's tensors in their folded form.

        Raises:
            ValueError: for methods that have none, which is all but ept.
        """
        raise ValueError(f"method '{self.method}' has nothing to fold; its payload is raw")

    def payload_tensors(self, *, share: str, payload: str, detach: bool = True) -> dict[str, Tensor]:
        """Return what would travel.

        Args:
            share: "prompts" for the method's tensors, or "prompts+head".
            payload: "raw" for the tensors as they are; "folded" only where the method folds.
            detach: False keeps the graph, for terms of a loss.

        Returns:
            tensors by name, in the order of the layout: the method's, then the head's if shared.
        """
        tensors: dict[str, Tensor] = {**(self.folded_tensors() if payload == "folded" else self.method_tensors())}
        if share == "prompts+head":
            tensors |= {"head.weight": self.head.weight, "head.bias": self.head.bias}
        return {name: tensor.detach() for name, tensor in tensors.items()} if detach else tensors

    @torch.no_grad()
    def load_payload(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over received tensors.

        Raises:
            KeyError: for a name this model has no room for.
            ValueError: for a shape that does not fit.
        """
        targets = {**self.method_tensors(), "head.weight": self.head.weight, "head.bias": self.head.bias}
        for name, tensor in tensors.items():
            target = targets[name]
            if target.shape != tensor.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; this model needs {tuple(target.shape)}")
            target.copy_(tensor)

    @staticmethod
    def generator(seed: int) -> torch.Generator:
        """Return the generator that a comparator draws its tensors from, whatever else is drawn."""
        return torch.Generator().manual_seed(derive_seed(seed, "method"))


def _create_head(embed_dim: int, num_classes: int, seed: int) -> nn.Linear:
    """Return a linear head (D -> C) drawn from its own generator; nn.Linear alone would draw from the global one."""
    head: nn.Linear = nn.utils.skip_init(nn.Linear, embed_dim, num_classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, 0.01, generator=generator)
        head.bias.zero_()
    return head
