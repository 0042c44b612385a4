"""The choice of precision: bfloat16 if the device has instructions for it, otherwise float32."""

import torch

from ept_fed.config.experiment import Experiment
from ept_fed.models.device import choose_device

__all__ = ["settle_precision", "use_bfloat16"]

# bfloat16 instructions of x86 and ARM, as in torch.cpu.get_capabilities; AVX-512 without BF16 can only convert.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether to compute in bfloat16.

    Args:
        precision: as in `TrainingSettings`.
        device: the device of the model.

    Returns:
        True for bfloat16, and if the hardware supports it also for auto (only on CUDA) and fast (on any device).
    """
    if precision in ("float32", "bfloat16"):
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "fast" and any(torch.cpu.get_capabilities().get(name, False) for name in _INSTRUCTIONS)


def settle_precision(experiment: Experiment) -> Experiment:
    """Return the settings with auto and fast replaced by the precision that they select on this machine.

    The results of a cell depend on the precision, so its settings must name it.

    Raises:
        InputRefusedError: if the device of the settings is not available.
    """
    training = experiment.training
    if training.precision in ("float32", "bfloat16"):
        return experiment
    device = choose_device(experiment.model.device, "model.device")
    precision = "bfloat16" if use_bfloat16(training.precision, device) else "float32"
    return experiment.model_copy(update={"training": training.model_copy(update={"precision": precision})})
