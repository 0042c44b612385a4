"""Conversion between a model's tensors and the flat vector that is sent."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

from ept_fed.catalog.methods import STATISTICS_TENSORS, Statistics
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.training.class_statistics import pack_statistics, shape_statistics, unpack_statistics
from ept_fed.training.lda import ClassStatistics

__all__ = ["export_payload", "import_payload", "payload_layout", "read_statistics"]

_T = TypeVar("_T")


def payload_layout(
    model: TunedViT, *, share: str, payload: str, classes: Sequence[str], statistics: Statistics | None = None
) -> PayloadLayout:
    """Return the layout of the payload that this model would send; see `TunedViT.payload_tensors`.

    The meaning of the layout contains `TunedViT.meaning` and, if the head is shared, the classes in order.

    Args:
        model: contains the method's tensors and the head.
        share: "prompts", or "prompts+head".
        payload: "folded" or "raw".
        classes: names of the C classes.
        statistics: kind of LDA statistics that are sent instead of the head's own tensors; None sends no statistics.
    """
    tensors = model.payload_tensors(share="prompts" if statistics else share, payload=payload)
    meaning = [*model.meaning()]
    if share == "prompts+head":
        meaning += [f"class {name}" for name in classes]
    shapes = [(name, tuple(tensor.shape)) for name, tensor in tensors.items()]
    if statistics is not None:
        shapes += shape_statistics(statistics, classes=len(classes), width=model.head.in_features).items()
    return PayloadLayout(tuple(shapes), tuple(meaning))


def export_payload(model: TunedViT, layout: PayloadLayout, statistics: ClassStatistics | None = None) -> Vector:
    """Return the tensors of the layout as one float32 vector (layout.size,).

    Args:
        model: its tensors are sent.
        layout: layout of the vector.
        statistics: sent if the layout contains statistics; None if none have been measured yet.
    """
    names = [name for name, _ in layout.shapes]
    share = "prompts+head" if "head.weight" in names else "prompts"
    tensors = model.payload_tensors(share=share, payload="folded" if "sinks" in names else "raw")
    arrays = {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}
    return layout.flatten({**arrays, **pack_statistics(statistics, _of_statistics(dict(layout.shapes)))})


def import_payload(model: TunedViT, vector: Vector, layout: PayloadLayout) -> None:
    """Load a received vector into the model; sinks unfold into the model's own columns.

    Statistics in the vector are skipped, because they are not part of the model.

    Raises:
        PayloadMismatchError: if the vector does not fit the layout.
        KeyError, ValueError: if the layout does not fit the model.
    """
    arrays = layout.unflatten(np.asarray(vector))
    loaded = {name: torch.from_numpy(array) for name, array in arrays.items() if name not in STATISTICS_TENSORS}
    model.load_payload(loaded)


def read_statistics(vector: Vector, layout: PayloadLayout) -> ClassStatistics | None:
    """Return the statistics in a received vector; None if the layout has none, or none have been measured yet.

    Raises:
        PayloadMismatchError: if the vector does not fit the layout, or no images can have these statistics.
    """
    found = _of_statistics(layout.unflatten(np.asarray(vector)))
    return unpack_statistics(found) if found else None


def _of_statistics(tensors: Mapping[str, _T]) -> dict[str, _T]:
    return {name: tensor for name, tensor in tensors.items() if name in STATISTICS_TENSORS}
