"""Between a model's tensors and the flat vector that travels."""

from collections.abc import Sequence

import numpy as np
import torch

from ept_fed.models.method import TunedViT
from ept_fed.protocol.layout import PayloadLayout, Vector

__all__ = ["export_payload", "import_payload", "payload_layout"]


def payload_layout(model: TunedViT, *, share: str, payload: str, classes: Sequence[str]) -> PayloadLayout:
    """Return the layout of what this model would send; see `TunedViT.payload_tensors`.

    What the method says of itself is part of its meaning, and so are the classes, in order, where the head is shared.
    """
    tensors = model.payload_tensors(share=share, payload=payload)
    meaning = [*model.meaning()]
    if share == "prompts+head":
        meaning += [f"class {name}" for name in classes]
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    return PayloadLayout(shapes, tuple(meaning))


def export_payload(model: TunedViT, layout: PayloadLayout) -> Vector:
    """Return the tensors of the layout as one float32 vector (layout.size,)."""
    names = [name for name, _ in layout.shapes]
    share = "prompts+head" if "head.weight" in names else "prompts"
    tensors = model.payload_tensors(share=share, payload="folded" if "sinks" in names else "raw")
    return layout.flatten({name: tensor.float().cpu().numpy() for name, tensor in tensors.items()})


def import_payload(model: TunedViT, vector: Vector, layout: PayloadLayout) -> None:
    """Load a received vector into the model; sinks unfold into the model's own columns.

    Raises:
        PayloadMismatchError: if the vector does not fit the layout.
        KeyError, ValueError: if the layout does not fit the model.
    """
    arrays = layout.unflatten(np.asarray(vector))
    model.load_payload({name: torch.from_numpy(array) for name, array in arrays.items()})
