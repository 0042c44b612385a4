"""Where a model computes."""

import torch

from ept_fed.errors import InputRefusedError, Problem

__all__ = ["choose_device"]


def choose_device(wanted: str, field: str) -> torch.device:
    """Return where to compute; "auto" takes CUDA where there is one. `field` is what a refusal calls the wish.

    Raises:
        InputRefusedError: if CUDA is wanted and not there.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise InputRefusedError([Problem(field, "cuda", "torch sees no CUDA device here; use cpu or auto")])
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")
