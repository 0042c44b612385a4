"""Weighted sums of float32 vectors as modular integers, so that masks cancel exactly and no sum wraps around.

A site's vector x (n,) and its weight w become n + 1 words modulo 2^bits: w·round(x / step), then w. The words of all
sites are added. The mean is Σ w·round(x / step) / Σ w · step. It differs from the float mean by half a step at most.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.layout import PayloadMismatchError, Vector

__all__ = ["FixedPoint", "Words"]

Words: TypeAlias = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]

# A float64 holds every integer up to here, so scaling and rounding are exact.
_MAX_LEVELS = 1 << 52


@dataclass(frozen=True)
class FixedPoint:
    """Encoding of numbers as integers, with room for the sum of all sites.

    Attributes:
        sites: maximum number of sites in a sum.
        heaviest: the largest weight that a site may have; 1 for uniform weights.
        step: distance between two neighbouring numbers, a power of two.
        bound: numbers are in [-bound, bound].
        bits: size of a word, 32 or 64.

    Raises:
        InputRefusedError: naming every impossible setting, or the settings that leave no room for the sum.
    """

    sites: int
    heaviest: int
    step: float = 2.0**-24
    bound: float = 64.0
    bits: Literal[32, 64] = 64

    def __post_init__(self) -> None:
        problems = [
            Problem(name, value, "must be a whole number, at least 1")
            for name, value in (("sites", self.sites), ("heaviest", self.heaviest))
            if type(value) is not int or value < 1
        ]
        if not (0 < self.step < math.inf and math.frexp(self.step)[0] == 0.5):
            problems.append(Problem("step", self.step, "must be a power of two, such as 2**-24"))
        elif not self.step <= self.bound <= self.step * _MAX_LEVELS:
            problems.append(Problem("bound", self.bound, f"must be between one and {_MAX_LEVELS} steps"))
        if self.bits not in (32, 64):
            problems.append(Problem("bits", self.bits, "must be 32 or 64"))
        if not problems and self.sites * self.heaviest * self.levels >= 1 << (self.bits - 1):
            fix = f"{self.sites} sites of weight {self.heaviest} overflow {self.bits} bits; raise step, or use 64 bits"
            problems.append(Problem("step", self.step, fix))
        if problems:
            raise InputRefusedError(problems)

    @cached_property
    def levels(self) -> int:
        """The largest integer that encodes a number, before it is weighted."""
        return math.floor(self.bound / self.step)

    @cached_property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Data type of a word, little-endian."""
        return np.dtype(f"<u{self.bits // 8}")

    def encode(self, values: Vector, weight: int) -> Words:
        """Return the words (n + 1,) of a vector (n,), the weight last.

        Raises:
            PayloadMismatchError: unless the numbers are finite float32 within the bound and the weight is 1 to
                `heaviest`. The text contains no number of the vector, because it may leave the site.
        """
        if values.dtype != np.float32 or values.ndim != 1:
            raise PayloadMismatchError(f"the values must be a vector of float32, not {values.dtype} {values.shape}")
        if type(weight) is not int or not 1 <= weight <= self.heaviest:
            raise PayloadMismatchError(f"a site's weight must be a whole number from 1 to {self.heaviest}")
        if not np.isfinite(values).all():
            raise PayloadMismatchError("a value to be summed is not finite")
        rounded = np.rint(values.astype(np.float64) / self.step)
        if (np.abs(rounded) > self.levels).any():
            raise PayloadMismatchError(f"a value to be summed is outside ±{self.bound:g}")
        signed = np.append(rounded.astype(np.int64) * weight, weight)
        return signed.astype(np.uint64).astype(self.dtype)

    def decode(self, total: Words, sites: int) -> tuple[Vector, int]:
        """Return the weighted mean (n,) and the sum of weights from the sum (n + 1,) of the words of `sites` sites.

        Raises:
            PayloadMismatchError: if no inputs of so many sites give this sum. A sum that passes may still be poisoned.
        """
        weight = int(total[-1])
        if not sites <= weight <= sites * self.heaviest:
            raise PayloadMismatchError(f"weights of {sites} sites cannot add up to {weight}")
        signed = total[:-1].view(f"<i{self.bits // 8}").astype(np.int64)
        maximum = self.levels * weight
        if ((signed > maximum) | (signed < -maximum)).any():
            raise PayloadMismatchError(f"numbers within ±{self.bound:g} cannot have this sum")
        return (signed.astype(np.float64) / weight * self.step).astype(np.float32), weight
