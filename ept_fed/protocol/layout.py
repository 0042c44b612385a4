"""The payload's layout: which tensors, in which order and shape, make up one flat float32 vector."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ept_fed.catalog.methods import STATISTICS_TENSORS, find_senders, may_travel

__all__ = ["PayloadLayout", "PayloadMismatchError", "Vector"]

Vector = npt.NDArray[np.float32]


class PayloadMismatchError(ValueError):
    """A payload whose shape, dtype or content differs from its layout."""


@dataclass(frozen=True)
class PayloadLayout:
    """Names and shapes of the tensors, in their order in the vector, and their meaning.

    Attributes:
        shapes: pairs of name and shape, e.g. (("sinks", (12, 197)), ("tokens", (12, 1, 768))).
        meaning: facts that shapes do not show, e.g. the layers of the sinks and, for a shared head, the class of each
            row. Without them, prompts of layers 0 and 1 would be averaged with those of layers 2 and 3.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    meaning: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [name for name, _ in self.shapes]
        if not names or len(set(names)) != len(names):
            raise PayloadMismatchError(f"a layout needs distinct tensor names, not {names}")
        for name, shape in self.shapes:
            if not may_travel(name):
                raise PayloadMismatchError(
                    f"tensor '{name}' must not be sent: no method in ept_fed/catalog/methods.py sends it"
                )
            if not shape or any(not isinstance(axis, int) or axis < 1 for axis in shape):
                raise PayloadMismatchError(f"tensor '{name}' has shape {shape}; every axis must be a positive integer")
        if not find_senders(names):
            raise PayloadMismatchError(f"no method sends {', '.join(names)} together")

    @cached_property
    def size(self) -> int:
        """Number of float32 values in the vector."""
        return sum(prod(shape) for _, shape in self.shapes)

    @cached_property
    def holds_statistics(self) -> bool:
        """Whether the layout contains the statistics from which an LDA head is computed."""
        return any(name in STATISTICS_TENSORS for name, _ in self.shapes)

    @cached_property
    def trained(self) -> npt.NDArray[np.bool_]:
        """(size,) whether a value is trained; statistics are measured, so bounds on steps do not apply to them."""
        return np.repeat(
            [name not in STATISTICS_TENSORS for name, _ in self.shapes], [prod(shape) for _, shape in self.shapes]
        )

    @cached_property
    def hash(self) -> str:
        """SHA-256, in hex, of names, shapes, order and meaning; equal hashes mean equal interpretation of a vector."""
        identity = {"shapes": self.to_json(), "meaning": list(self.meaning)}
        return hashlib.sha256(json.dumps(identity, separators=(",", ":")).encode()).hexdigest()

    def to_json(self) -> list[list[Any]]:
        """Return a JSON-ready list of [name, shape]."""
        return [[name, list(shape)] for name, shape in self.shapes]

    def flatten(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Vector:
        """Concatenate tensors into one float32 vector (size,).

        Raises:
            PayloadMismatchError: if a name, the order of the names, or a shape differs from the layout.
        """
        if list(tensors) != [name for name, _ in self.shapes]:
            raise PayloadMismatchError(f"tensors {list(tensors)} do not match {[name for name, _ in self.shapes]}")
        parts = []
        for name, shape in self.shapes:
            if tensors[name].shape != shape:
                raise PayloadMismatchError(f"'{name}' has shape {tensors[name].shape}; the layout has {shape}")
            parts.append(np.asarray(tensors[name], dtype=np.float32).reshape(-1))
        return np.concatenate(parts)

    def unflatten(self, vector: npt.NDArray[Any]) -> dict[str, Vector]:
        """Split a vector (size,) into tensors by name, as copies; a received one was checked on arrival.

        Raises:
            PayloadMismatchError: if it has another size.
        """
        if vector.shape != (self.size,):
            raise PayloadMismatchError(f"payload is {vector.shape}; the layout has ({self.size},)")
        tensors, start = {}, 0
        for name, shape in self.shapes:
            stop = start + prod(shape)
            tensors[name] = vector[start:stop].reshape(shape).copy()
            start = stop
        return tensors

    def check(self, vector: npt.NDArray[Any]) -> None:
        """Refuse anything but a finite float32 vector of the layout's size.

        Raises:
            PayloadMismatchError: stating the difference.
        """
        if vector.dtype != np.float32 or vector.shape != (self.size,):
            raise PayloadMismatchError(
                f"payload is {vector.dtype} {vector.shape}; the layout has float32 ({self.size},)"
            )
        if not np.isfinite(vector).all():
            raise PayloadMismatchError(f"payload holds {int((~np.isfinite(vector)).sum())} values that are not finite")
