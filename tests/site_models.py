"""The model that a site left in a run folder, rewritten with other tensors or metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

MODEL = "model.safetensors"


def site_tensors(run: Path, site: str) -> dict[str, np.ndarray]:
    """Return the tensors of a site's model."""
    return load_file(run / "sites" / site / MODEL)


def perturb(tensors: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Return the tensors of another model of the same site: each number moved by its own noise."""
    rng = np.random.default_rng(seed)
    return {name: value + rng.normal(0, 0.2, value.shape).astype(np.float32) for name, value in tensors.items()}


def prefix(members: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the tensors of all members, with the names that a site gives them."""
    return {f"{member}/{name}": value for member, tensors in members.items() for name, value in tensors.items()}


def rewrite_model(run: Path, site: str, tensors: Mapping[str, np.ndarray], **changes: Any) -> None:
    """Write the site's model with these tensors and changes of its metadata; None removes an entry."""
    path = run / "sites" / site / MODEL
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["ept_fed"]) | changes
    about = {key: value for key, value in about.items() if value is not None}
    save_file(dict(tensors), path, metadata={"ept_fed": json.dumps(about)})
