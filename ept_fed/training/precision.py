"""Which numbers a device computes in: bfloat16 where it has instructions for it, float32 elsewhere."""

import torch

from ept_fed.config.experiment import Experiment
from ept_fed.models.device import choose_device

__all__ = ["settle_precision", "use_bfloat16"]

# Of x86 and ARM processors, by their names in torch.cpu.get_capabilities. AVX-512 without BF16 only converts.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Tell whether to compute in bfloat16.

    Args:
        precision: as in `TrainingSettings`.
        device: where the model lives.

    Returns:
        True where bfloat16 is asked for, and where auto (on CUDA) or fast (anywhere) finds hardware for it.
    """
    if precision in ("float32", "bfloat16"):
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "fast" and any(torch.cpu.get_capabilities().get(name, False) for name in _INSTRUCTIONS)


def settle_precision(experiment: Experiment) -> Experiment:
    """Return the settings with what auto and fast come to on this machine, because a cell's numbers depend on it.

    Raises:
        InputRefusedError: if the device that decides is not there.
    """
    training = experiment.training
    if training.precision in ("float32", "bfloat16"):
        return experiment
    device = choose_device(experiment.model.device, "model.device")
    precision = "bfloat16" if use_bfloat16(training.precision, device) else "float32"
    return experiment.model_copy(update={"training": training.model_copy(update={"precision": precision})})
