"""Optimisers with a separate learning rate for each kind of tensor."""

import torch

from ept_fed.config.experiment import TrainingSettings
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["build_optimizer", "moves_method", "set_learning_rates"]


def build_optimizer(model: TunedViT, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return SGD or AdamW for the trainable parameters, with one group per kind of `TunedViT.parameter_groups`."""
    rates = _list_rates(settings)
    groups = [
        {"name": kind, "params": parameters, "lr": rates[kind], "base_lr": rates[kind]}
        for kind, parameters in model.parameter_groups().items()
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


def moves_method(model: TunedViT, settings: TrainingSettings) -> bool:
    """Return whether any of the method's own tensors has a learning rate above 0; method linear has no such tensors."""
    rates = _list_rates(settings)
    return any(rates[kind] > 0 for kind in model.parameter_groups() if kind != "head")


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base rate times the factor of the schedule."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def _list_rates(settings: TrainingSettings) -> dict[str, float]:
    return {
        "prompts": settings.prompt_lr,
        "tokens": settings.token_lr,
        "method": settings.method_lr,
        "head": settings.head_lr,
    }
