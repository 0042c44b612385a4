"""Provenance of a cell's numbers: its backbone, its images, and the software and hardware that computed them."""

import json
import platform
import re
from pathlib import Path
from typing import Any

import timm
import torch

import ept_fed
from ept_fed.config.benchmark_cell import Cell
from ept_fed.config.data import LOCAL_DATA_FIELDS
from ept_fed.config.experiment import Experiment
from simulations.engine.virtual_sites import VirtualFederation

__all__ = ["describe_machine", "describe_sources", "name_backbone", "name_sources"]

_PROCESSORS = Path("/proc/cpuinfo")


def name_sources(cell: Cell) -> str:
    """Return a name that is equal for cells that share images and backbone."""
    own = cell.experiment
    model = own.model.model_dump(mode="json", include={"backbone", "weights", "image_size", "device"})
    return json.dumps([own.seed, own.data.model_dump(mode="json"), model])


def name_backbone(federation: VirtualFederation) -> str:
    """Return a name that distinguishes backbones of equal settings; random weights are drawn from the cell's seed."""
    return f"backbone {federation.backbone.digest}" if federation.experiment.model.weights else "random weights"


def describe_sources(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that select a cell's backbone and images, without their paths.

    Returns:
        `model` as text, and `data` with the seed of the image sampling.
    """
    model, data = experiment.model, experiment.data
    weights = "random" if model.weights is None else "given"
    return {
        "model": f"{model.backbone}, {model.image_size or 'its own'} pixels, {weights} weights",
        "data": data.model_dump(mode="json", exclude=set(LOCAL_DATA_FIELDS)) | {"seed": experiment.data_seed},
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the software versions and the hardware that influence a cell's numbers besides its settings."""
    processor = platform.processor() or platform.machine()
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    elif _PROCESSORS.exists() and (told := re.search(r"^model name\s*: (.+)$", _PROCESSORS.read_text(), re.MULTILINE)):
        processor = told[1]
    return {
        "ept_fed": ept_fed.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "processor": processor,
        "threads": torch.get_num_threads(),
    }
