"""Between a model's tensors and the flat vector that travels."""

import numpy as np
import torch

from ept_fed.models.vit import PromptedViT
from ept_fed.protocol.layout import PayloadLayout, Vector

__all__ = ["export_payload", "import_payload", "payload_layout"]


def payload_layout(model: PromptedViT, *, share: str, payload: str) -> PayloadLayout:
    """Return the layout of what this model would send; see `PromptedViT.payload_tensors`."""
    tensors = model.payload_tensors(share=share, payload=payload)
    return PayloadLayout(tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items()))


def export_payload(model: PromptedViT, *, share: str, payload: str) -> Vector:
    """Return what travels as one float32 vector (layout.size,)."""
    tensors = model.payload_tensors(share=share, payload=payload)
    arrays = {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}
    return PayloadLayout.of(arrays).flatten(arrays)


def import_payload(model: PromptedViT, vector: Vector, layout: PayloadLayout) -> None:
    """Load a received vector into the model; sinks unfold into the model's own columns.

    Raises:
        PayloadMismatchError: if the vector does not fit the layout.
        KeyError, ValueError: if the layout does not fit the model.
    """
    arrays = layout.unflatten(np.asarray(vector))
    model.load_payload({name: torch.from_numpy(array) for name, array in arrays.items()})
