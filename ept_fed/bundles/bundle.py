"""A release bundle: a folder with bundle.json, model.safetensors and signature.json.

signature.json signs the bytes of bundle.json, and bundle.json contains the SHA-256 of model.safetensors. So a bundle
with one changed byte in any of the three files is refused. Other files in the folder are never read.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors import SafetensorError
from safetensors.numpy import load

from ept_fed.bundles.description import Description, parse_description
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.signing import verify
from ept_fed.protocol.layout import Vector

__all__ = ["DESCRIPTION", "MODEL", "SIGNATURE", "Bundle", "check_tensors", "open_bundle", "read_bundle"]

DESCRIPTION, MODEL, SIGNATURE = "bundle.json", "model.safetensors", "signature.json"
_MAX_BYTES = {DESCRIPTION: 1 << 20, MODEL: 1 << 30, SIGNATURE: 1 << 16}


@dataclass(frozen=True)
class Bundle:
    """A bundle that passed every check.

    Attributes:
        description: content of bundle.json.
        tensors: float32 by name: `sinks` (L, N + T) or `prompts` (L, N + T, M), `tokens` (L, T, D) if T > 0,
            `head.weight` (C, D), `head.bias` (C,). If the model has members, each has these tensors, and their names
            start with the member's: `local/sinks`.
        fingerprint: SHA-256 of the key that signed the bundle.
        trusted: whether the caller required this key.
    """

    description: Description
    tensors: Mapping[str, Vector]
    fingerprint: str
    trusted: bool


def read_bundle(folder: Path, trusted: ec.EllipticCurvePublicKey | None = None) -> Bundle:
    """Read a bundle from its folder.

    Args:
        folder: bundle folder, created by `ept-fed export`.
        trusted: the only accepted key; None: any key is accepted.

    Raises:
        InputRefusedError: if a file is missing, too large, altered, of another schema, or signed by another key.
    """
    if not folder.is_dir():
        raise InputRefusedError([Problem("BUNDLE", str(folder), "is not a folder; create one with ept-fed export")])
    files, problems = {}, []
    for name, maximum in _MAX_BYTES.items():
        try:
            with (folder / name).open("rb") as file:
                files[name] = file.read(maximum + 1)
        except OSError as error:
            problems.append(Problem(f"BUNDLE/{name}", str(folder / name), f"cannot be read ({error.strerror})"))
            continue
        if len(files[name]) > maximum:
            problems.append(Problem(f"BUNDLE/{name}", str(folder / name), f"is larger than {maximum:,} bytes"))
    if problems:
        raise InputRefusedError(problems)
    return open_bundle(files, trusted)


def open_bundle(files: Mapping[str, bytes], trusted: ec.EllipticCurvePublicKey | None) -> Bundle:
    """Check a bundle's three files; the signature is checked before any content is used; see `read_bundle`."""
    signer = verify(files[DESCRIPTION], files[SIGNATURE], trusted)
    description = parse_description(files[DESCRIPTION])
    digest = hashlib.sha256(files[MODEL]).hexdigest()
    if digest != description.model_sha256:
        fix = f"differs from the digest in bundle.json ({description.model_sha256}); get an unaltered copy"
        raise InputRefusedError([Problem(f"{MODEL}: SHA-256", digest, fix)])
    return Bundle(description, check_tensors(files[MODEL], description.tensors), signer, trusted is not None)


def check_tensors(content: bytes, shapes: Mapping[str, tuple[int, ...]] | None) -> dict[str, Vector]:
    """Return the tensors of model.safetensors; they must be finite float32 of the given names and shapes (None: any).

    Raises:
        InputRefusedError: with a problem for each tensor that is missing, unknown or not as required.
    """
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        fix = f"is not a safetensors file ({' '.join(str(error).split())}); get an unaltered copy"
        raise InputRefusedError([Problem(MODEL, f"{len(content):,} bytes", fix)]) from error
    shapes = {name: tensor.shape for name, tensor in tensors.items()} if shapes is None else shapes
    problems = [Problem(MODEL, name, "is missing") for name in shapes if name not in tensors]
    for name, tensor in tensors.items():
        if name not in shapes:
            problems.append(Problem(MODEL, name, "is not in bundle.json"))
        elif tensor.shape != tuple(shapes[name]) or tensor.dtype != np.float32:
            need = f"need float32 {tuple(shapes[name])}"
            problems.append(Problem(f"{MODEL}: {name}", f"{tensor.dtype} {tensor.shape}", need))
        elif not np.isfinite(tensor).all():
            problems.append(Problem(f"{MODEL}: {name}", "NaN or infinity", "every number must be finite"))
    if problems:
        raise InputRefusedError(problems)
    return tensors
