"""Probabilities of a model for a set of images, and the features from which its head computes them."""

import numpy as np
import torch

from ept_fed.data.datasets.prepare import CachedDataset
from ept_fed.evaluation.metrics import Array
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["extract_features", "predict_probabilities"]


@torch.inference_mode()
def predict_probabilities(model: TunedViT, images: CachedDataset, *, batch_size: int, bfloat16: bool) -> Array:
    """Return probabilities (n, C) in float32: a softmax over classes, or one sigmoid per class for multi-label."""
    device = model.device
    model.eval()
    parts = []
    for batch, _ in images.batches(batch_size):
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = model(batch.to(device)).float()
        probabilities = logits.softmax(-1) if images.task == "single_label" else logits.sigmoid()
        parts.append(probabilities.cpu().numpy())
    if not parts:
        return np.empty((0, model.head.out_features), dtype=np.float32)
    return np.concatenate(parts)


@torch.inference_mode()
def extract_features(model: TunedViT, images: CachedDataset, *, batch_size: int, bfloat16: bool) -> Array:
    """Return the input features of the head, (n, D) in float32: those of the cls token for the paper's models."""
    device = model.device
    model.eval()
    parts = []
    for batch, _ in images.batches(batch_size):
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            features = model.forward_features(batch.to(device)).float()
        parts.append(features.cpu().numpy())
    return np.concatenate(parts) if parts else np.empty((0, model.head.in_features), dtype=np.float32)
