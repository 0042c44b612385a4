"""The four ways in which prompts enter the attention logits (Zu et al. 2024, section 4.4, Fig. 5).

Each takes q, k, v (B, H, N, d) and one layer's prompt (N, M), and returns (B, H, N, d). A is the scaled logits
q kᵀ / √d.

* concat: columns beside A in the softmax, dropped afterwards. The default, as in the authors' code; only it folds.
* multiply_concat: the columns are first scaled per image, head and query token by max(A) - min(A) of that row.
* add: softmax(A + P), so P is (N, N).
* multiply: softmax(A ⊙ (1 + P)), P (N, N). The paper writes the plain product; counted from one, prompts that start
  near zero start at the pretrained attention instead of a uniform one.
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
# The same functions in operations that every exporter and runtime knows.
PORTABLE_EMBEDDINGS: dict[str, Embedding] = EMBEDDINGS | {
    "concat": partial(_concat, backend="portable"),
    "multiply_concat": partial(_multiply_concat, backend="portable"),
}
FOLDABLE = frozenset({"concat"})


def needs_square_prompt(embedding: str) -> bool:
    """Tell whether the prompt length M has to equal the number of tokens."""
    return embedding in {"add", "multiply"}


def refuse_folding(embedding: str) -> str:
    """Return the sentence that says why prompts embedded this way have no fold."""
    if embedding == "multiply_concat":
        why = "its columns are scaled by each image's own logits, so their log-sum-exp differs from image to image"
    else:
        why = "every prompt entry meets its own key, so there is no sum over columns to fold"
    return f"embedding '{embedding}' cannot be folded: {why}; send raw prompts, or use 'concat'"
