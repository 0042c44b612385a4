"""The choice of the device on which a model runs."""

import torch

from ept_fed.errors import InputRefusedError, Problem

__all__ = ["choose_device"]


def choose_device(wanted: str, field: str) -> torch.device:
    """Return the device to compute on.

    Args:
        wanted: "cpu", "cuda", or "auto", which uses CUDA if it is available.
        field: name of the setting, for the error message.

    Raises:
        InputRefusedError: if CUDA is requested but not available.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise InputRefusedError([Problem(field, "cuda", "torch finds no CUDA device here; use cpu or auto")])
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")
