"""Optimisers with a learning rate of its own for every kind of tensor."""

import torch

from ept_fed.config import TrainingSettings
from ept_fed.models.method import TunedViT

__all__ = ["build_optimizer", "set_learning_rates"]


def build_optimizer(model: TunedViT, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return SGD or AdamW over the trainable parameters, one group for each kind in `TunedViT.parameter_groups`."""
    rates = {
        "prompts": settings.prompt_lr,
        "tokens": settings.token_lr,
        "method": settings.method_lr,
        "head": settings.head_lr,
    }
    groups = [
        {"name": kind, "params": parameters, "lr": rates[kind], "base_lr": rates[kind]}
        for kind, parameters in model.parameter_groups().items()
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its own base rate times a factor of the schedule."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
