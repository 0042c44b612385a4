"""Checkpoint files: safetensors with a description and the SHA-256 of both inside, so that damage is detected.

A truncated file fails to parse, and an altered file does not match its own hash. The hash protects against accidents,
not against attackers: anyone who can write the file can also write its hash.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ept_fed.storage.files import write_bytes

__all__ = ["DamagedCheckpointError", "read_checksummed", "serialize_checksummed", "write_checksummed"]

Tensors = Mapping[str, npt.NDArray[Any]]

_KEY = "ept_fed"


class DamagedCheckpointError(ValueError):
    """A checkpoint file that is truncated, altered, or not a checkpoint; the text names the file."""


def write_checksummed(path: Path, tensors: Tensors, about: Mapping[str, Any]) -> None:
    """Write tensors and their description atomically."""
    write_bytes(path, serialize_checksummed(tensors, about))


def serialize_checksummed(tensors: Tensors, about: Mapping[str, Any]) -> bytes:
    """Return the bytes of a checkpoint file with these tensors and this description."""
    checked = {"about": dict(about), "sha256": _digest(tensors, about)}
    # Only one key: safetensors writes several keys in a random order, but equal states must give equal bytes.
    return save(dict(tensors), metadata={_KEY: json.dumps(checked)})


def read_checksummed(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return tensors and description.

    Raises:
        DamagedCheckpointError: if the file cannot be read, is truncated, or was altered.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        checked = json.loads(metadata[_KEY])
        about, digest = dict(checked["about"]), checked["sha256"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(f"{path} is cut short or is not a checkpoint ({type(error).__name__})") from error
    if _digest(tensors, about) != digest:
        raise DamagedCheckpointError(f"{path} was altered: its content does not match the SHA-256 inside")
    return tensors, about


def _digest(tensors: Tensors, about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
