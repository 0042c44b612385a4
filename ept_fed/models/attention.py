"""Prompted attention that is exact, differentiable, and as fast as plain attention.

Embedded Prompt Tuning concatenates M prompt columns P (N, M) to the scaled attention logits A (B, H, N, N), takes the
softmax over all N + M columns and drops the prompt columns again (Zu et al. 2024, Eq. 5). The output depends on the
prompt columns only through their log-sum-exp. With the sink s = logsumexp(P, -1) and lse(A) over the N real columns,

    out = softmax(A) v · sigmoid(lse(A) - s).

Flash kernels return (out, lse), so the forward pass multiplies their output by one factor per query. Their backward
pass recomputes the attention weights from lse. It receives lse' = logaddexp(lse, s) and the scaled output instead of
the original pair, and returns the exact dq, dk, dv. The gradient of the sink is ds = -exp(s - lse') · <d out, out>,
summed over d.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Kernel", "find_kernel", "prompted_attention"]

_aten = torch.ops.aten


@dataclass(frozen=True)
class Kernel:
    """A pair of PyTorch's flash-attention kernels that expose the log-sum-exp of the logits.

    `forward(q, k, v)` returns out (B, H, N, d), lse (B, H, N) in float32 or wider, and extras for the backward pass.
    `backward(grad, q, k, v, out, lse, extras)` returns dq, dk, dv.
    """

    name: str
    forward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, tuple[Any, ...]]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def prompted_attention(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor, *, backend: Literal["auto", "portable"] = "auto"
) -> Tensor:
    """Attend with one learnable, value-less logit per query token.

    Args:
        q, k, v: (B, H, N, d), with the same floating dtype and device.
        sink: (N,), (B, N), or broadcastable to (B, H, N). It keeps its own dtype; float32 or wider is recommended.
        backend: "auto" uses a flash kernel if there is one. "portable" works wherever `scaled_dot_product_attention`
            works, and can be differentiated twice.

    Returns:
        (B, H, N, d) in the dtype of q; exact, and differentiable in q, k, v and sink.

    Raises:
        ValueError: if shapes, dtypes or devices do not match. The kernels do not check this and would read out of
            bounds.
    """
    _check_inputs(q, k, v)
    sink = _as_bhn(sink, q)
    kernel = find_kernel(q) if backend == "auto" else None
    if kernel is None:
        return _portable(q, k, v, sink)
    out: Tensor = _SinkAttention.apply(q, k, v, sink, kernel)
    return out


def find_kernel(q: Tensor) -> Kernel | None:
    """Return the flash kernel for queries q (B, H, N, d), or None if only the portable path is exact."""
    head_dim = q.shape[-1]
    if q.device.type == "cpu" and q.dtype in (torch.float32, torch.bfloat16, torch.float16):
        return _CPU_FLASH
    half = q.dtype in (torch.bfloat16, torch.float16)
    if q.device.type == "cuda" and half and head_dim % 8 == 0 and head_dim <= 256 and _has_flash(q.device):
        return _CUDA_FLASH
    if q.device.type == "cuda" and q.dtype == torch.float32 and head_dim % 4 == 0:
        return _CUDA_EFFICIENT
    return None


def _check_inputs(q: Tensor, k: Tensor, v: Tensor) -> None:
    alike = k.shape == v.shape == q.shape and k.dtype == v.dtype == q.dtype and k.device == v.device == q.device
    if q.dim() != 4 or not q.is_floating_point() or not alike:
        given = ", ".join(f"{tuple(x.shape)} {x.dtype} {x.device}" for x in (q, k, v))
        raise ValueError(f"q, k and v must be floating (B, H, N, d) of one shape, dtype and device, not {given}")


def _has_flash(device: torch.device) -> bool:
    """Return whether PyTorch's flash kernels run on a device: they require compute capability 8.0 (no V100 or T4)."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _as_bhn(sink: Tensor, q: Tensor) -> Tensor:
    B, H, N, _ = q.shape
    shaped = sink.unsqueeze(1) if sink.dim() == 2 else sink
    fits = 1 <= shaped.dim() <= 3 and all(
        have in (1, want) for have, want in zip(reversed(shaped.shape), (N, H, B), strict=False)
    )
    if not fits or shaped.shape[-1] != N:
        raise ValueError(
            f"sink has shape {tuple(sink.shape)}; for queries {tuple(q.shape)} it must be ({N},), ({B}, {N}) "
            f"or broadcastable to ({B}, {H}, {N})"
        )
    return shaped


class _SinkAttention(torch.autograd.Function):
    """Attention with a softmax over N keys plus one key without a value, whose logit is the sink."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor, kernel: Kernel) -> Tensor:
        out, lse, extras = kernel.forward(q, k, v)
        total = torch.logaddexp(lse, sink.to(lse.dtype))
        out.mul_(torch.exp(lse - total).unsqueeze(-1))
        ctx.save_for_backward(q, k, v, out, total, sink)
        ctx.kernel, ctx.extras = kernel, extras
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, total, sink = ctx.saved_tensors
        dsink = None
        if ctx.needs_input_grad[3]:
            # Computed before the kernel runs, so that this product's memory is free again for dq, dk and dv.
            aligned = torch.linalg.vecdot(grad, out).to(total.dtype)
            dsink = aligned.mul_(torch.exp(sink.to(total.dtype) - total)).neg_()
            dsink = dsink.sum_to_size(sink.shape).to(sink.dtype)
        if not any(ctx.needs_input_grad[:3]):
            return None, None, None, dsink, None
        dq, dk, dv = ctx.kernel.backward(grad, q, k, v, out, total, ctx.extras)
        return dq, dk, dv, dsink, None


def _portable(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
    """Attend with one extra key and value of zeros, and an additive bias column that contains the sink.

    This is computed in float32 or wider: rounding a sink near 8 to bfloat16 changes exp(sink) by 3 %.
    """
    B, H, N, _ = q.shape
    dtype = q.dtype
    wide = torch.promote_types(dtype, torch.float32)
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    extra_logit = sink.to(wide).unsqueeze(-1)
    bias = torch.cat([extra_logit.new_zeros(*extra_logit.shape[:-1], k.shape[-2]), extra_logit], dim=-1)
    return F.scaled_dot_product_attention(
        q, F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), attn_mask=bias.expand(B, H, N, -1)
    ).to(dtype)


def _cpu_flash_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse, ()


def _cpu_flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, _extras: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    # In float32: for 37 to 65 tokens, PyTorch's kernel is about ten times slower in bfloat16, and less exact.
    wide = [tensor.to(torch.float32) for tensor in (grad, q, k, v, out)]
    dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(*wide, lse, 0.0, False)
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


def _cuda_flash_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    out, lse, cum_q, cum_k, max_q, max_k, rng_state, unused, _ = _aten._scaled_dot_product_flash_attention(q, k, v)
    return out, lse, (cum_q, cum_k, max_q, max_k, rng_state, unused)


def _cuda_flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, extras: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    cum_q, cum_k, max_q, max_k, rng_state, unused = extras
    gradients: tuple[Tensor, Tensor, Tensor] = _aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, lse, cum_q, cum_k, max_q, max_k, 0.0, False, rng_state, unused
    )
    return gradients


def _cuda_efficient_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    out, padded_lse, seed, offset = _aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    return out, padded_lse[..., : q.shape[-2]], (seed, offset, padded_lse.shape[-1])


def _cuda_efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, extras: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    seed, offset, padded_length = extras
    # The kernel reads the log-sum-exp in blocks of 32 queries; +inf in the padding gives it weight zero.
    padded_lse = F.pad(lse, (0, padded_length - lse.shape[-1]), value=torch.inf)
    dq, dk, dv, _ = _aten._scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, None, out, padded_lse, seed, offset, 0.0, [True, True, True, False]
    )
    return dq, dk, dv


_CPU_FLASH = Kernel("cpu flash", _cpu_flash_forward, _cpu_flash_backward)
_CUDA_FLASH = Kernel("cuda flash", _cuda_flash_forward, _cuda_flash_backward)
_CUDA_EFFICIENT = Kernel("cuda memory-efficient", _cuda_efficient_forward, _cuda_efficient_backward)
