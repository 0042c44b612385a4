"""The four ways to combine prompts with the attention logits (Zu et al. 2024, section 4.4, Fig. 5).

Each takes q, k, v (B, H, N, d) and one layer's prompt (N, M), and returns (B, H, N, d). A is the matrix of scaled
logits q kᵀ / √d.

* concat: the columns stand beside A in the softmax and are dropped afterwards. This is the default, as in the authors'
  code, and the only way that folds.
* multiply_concat: as concat, but the columns are first scaled by max(A) - min(A) of each row, that is, per image, head
  and query token.
* add: softmax(A + P), so P is (N, N).
* multiply: softmax(A ⊙ (1 + P)), with P (N, N). The paper has the plain product A ⊙ P. With 1 + P, prompts near zero
  start at the pretrained attention instead of a uniform attention.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ept_fed.models.attention import prompted_attention
from ept_fed.models.prompts import fold

__all__ = ["EMBEDDINGS", "FOLDABLE", "PORTABLE_EMBEDDINGS", "needs_square_prompt", "refuse_folding"]

Embedding = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Backend = Literal["auto", "portable"]


def _concat(q: Tensor, k: Tensor, v: Tensor, P: Tensor, backend: Backend = "auto") -> Tensor:
    return prompted_attention(q, k, v, fold(P), backend=backend)


def _multiply_concat(q: Tensor, k: Tensor, v: Tensor, P: Tensor, backend: Backend = "auto") -> Tensor:
    A = _logits(q, k)
    spread = A.amax(dim=-1) - A.amin(dim=-1)
    return prompted_attention(q, k, v, fold(spread.unsqueeze(-1) * P), backend=backend)


def _add(q: Tensor, k: Tensor, v: Tensor, P: Tensor) -> Tensor:
    return torch.softmax(_logits(q, k) + P, dim=-1).to(v.dtype) @ v


def _multiply(q: Tensor, k: Tensor, v: Tensor, P: Tensor) -> Tensor:
    return torch.softmax(_logits(q, k) * (1.0 + P), dim=-1).to(v.dtype) @ v


def _logits(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5


EMBEDDINGS: dict[str, Embedding] = {
    "concat": _concat,
    "multiply_concat": _multiply_concat,
    "add": _add,
    "multiply": _multiply,
}
# The same functions, built from operations that every exporter and runtime supports.
PORTABLE_EMBEDDINGS: dict[str, Embedding] = EMBEDDINGS | {
    "concat": partial(_concat, backend="portable"),
    "multiply_concat": partial(_multiply_concat, backend="portable"),
}
FOLDABLE = frozenset({"concat"})


def needs_square_prompt(embedding: str) -> bool:
    """Return whether the prompt length M must equal the number of tokens."""
    return embedding in {"add", "multiply"}


def refuse_folding(embedding: str) -> str:
    """Return the error text that explains why prompts with this embedding cannot be folded."""
    if embedding == "multiply_concat":
        why = "its columns are scaled by each image's own logits, so their log-sum-exp differs from image to image"
    else:
        why = "every prompt entry belongs to one key, so there is no sum over columns to fold"
    return f"embedding '{embedding}' cannot be folded: {why}; send raw prompts, or use 'concat'"
