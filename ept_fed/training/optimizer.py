"""Optimisers with a learning rate of their own for prompts, context tokens and head."""

import torch

from ept_fed.config import TrainingSettings
from ept_fed.models.vit import PromptedViT

__all__ = ["build_optimizer", "set_learning_rates"]


def build_optimizer(model: PromptedViT, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return SGD or AdamW over the trainable parameters, one group each for prompts, tokens and head.

    The groups exist because the M columns of a prompt share one sink: under SGD its effective learning rate is
    lr/M-like, and even under AdamW prompts want rates far above the head's.
    """
    groups = [
        {"name": "prompts", "params": [model.prompts], "lr": settings.prompt_lr},
        {"name": "head", "params": list(model.head.parameters()), "lr": settings.head_lr},
    ]
    if model.tokens is not None:
        groups.append({"name": "tokens", "params": [model.tokens], "lr": settings.token_lr})
    for group in groups:
        group["base_lr"] = group["lr"]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its own base rate times a factor of the schedule."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
