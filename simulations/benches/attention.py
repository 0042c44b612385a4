"""Measure the cost of prompted attention against plain attention and against the paper's formula, in one run.

    python -m simulations.benches.attention [--device cpu|cuda] [--turns 60]

For each shape (B, H, N, d), it prints the forward and backward time with gradients for q, k and v (and for the sink or
the prompt), as ratios to `scaled_dot_product_attention`, and the peak of the additional memory. Then it prints the time
of a whole training step of a PromptedViT, against the same frozen ViT with a gradient down to its input tokens.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ept_fed.models import PromptedViT, fold, prompted_attention
from simulations.benches.paired_timing import time_paired

SHAPES = ((4, 12, 197, 64), (4, 12, 577, 64), (8, 6, 65, 64))
PROMPT_LENGTH = 100


def main() -> None:
    """Run both benchmarks and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=60)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, medians of {arguments.turns} turns")
    for shape in SHAPES:
        bench_attention(shape, device, arguments.turns if shape[2] < 500 else max(10, arguments.turns // 3))
    bench_step(device, max(10, arguments.turns // 2))


def bench_attention(shape: tuple[int, int, int, int], device: torch.device, turns: int) -> None:
    """Print the time and memory of plain attention, prompted attention and the paper's formula at (B, H, N, d)."""
    B, H, N, d = shape
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        # The same strides as from a ViT's qkv projection: (B, N, H, d) in memory, viewed as (B, H, N, d).
        return torch.randn(B, N, H, d, generator=generator).to(device).transpose(1, 2)

    q, k, v = (draw().requires_grad_() for _ in range(3))
    grad = draw()
    P = (0.02 * torch.randn(N, PROMPT_LENGTH, generator=generator)).to(device).requires_grad_()
    sink = fold(P.detach()).requires_grad_()
    calls: dict[str, Callable[[], object]] = {
        "scaled_dot_product_attention": lambda: torch.autograd.grad(
            F.scaled_dot_product_attention(q, k, v), (q, k, v), grad
        ),
        "prompted_attention (sink)": lambda: torch.autograd.grad(
            prompted_attention(q, k, v, sink), (q, k, v, sink), grad
        ),
        "prompted_attention (fold of M = 100)": lambda: torch.autograd.grad(
            prompted_attention(q, k, v, fold(P)), (q, k, v, P), grad
        ),
        "portable path": lambda: torch.autograd.grad(
            prompted_attention(q, k, v, sink, backend="portable"), (q, k, v, sink), grad
        ),
        "the paper's formula, M = 100": lambda: torch.autograd.grad(_paper(q, k, v, P), (q, k, v, P), grad),
    }
    timings = time_paired({name: _synchronised(call, device) for name, call in calls.items()}, turns=turns)
    base = None
    print(f"\nforward + backward at (B, H, N, d) = {shape}")
    for name, timing in timings.items():
        peak = peak_memory(calls[name], device)
        base = base or peak
        print(f"  {name:38s} {timing}   peak {peak / 2**20:7.2f} MiB  ×{peak / base:.3f}")


def bench_step(device: torch.device, turns: int) -> None:
    """Print the time of a ViT-S/14 training step at 112 px, batch 8: prompted, and plain with token gradients."""
    model = PromptedViT.create(
        "vit_small_patch14_dinov2", num_classes=7, prompt_length=PROMPT_LENGTH, image_size=112
    ).to(device)
    vit = model.vit
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 112, 112, generator=generator).to(device)
    labels = torch.randint(0, 7, (8,), generator=generator).to(device)
    prompted = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-9)
    head = torch.optim.AdamW(model.head.parameters(), lr=1e-9)

    def step_prompted() -> None:
        prompted.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        prompted.step()

    def step_plain() -> None:
        head.zero_grad()
        tokens = vit._pos_embed(vit.patch_embed(images)).requires_grad_()
        features = vit.forward_head(vit.norm(vit.blocks(vit.norm_pre(tokens))), pre_logits=True)
        F.cross_entropy(model.head(features), labels).backward()
        head.step()

    calls = {"frozen ViT, gradient to its tokens": step_plain, "PromptedViT, all layers": step_prompted}
    timings = time_paired({name: _synchronised(call, device) for name, call in calls.items()}, turns=turns)
    print("\ntraining step, ViT-S/14 at 112 px, batch 8")
    for name, timing in timings.items():
        print(f"  {name:38s} {timing}")


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Return the peak memory in bytes that `call` allocates in addition to the memory already in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _paper(q: Tensor, k: Tensor, v: Tensor, P: Tensor) -> Tensor:
    """Compute eq. 5 as written in the paper: concatenate, softmax, drop."""
    A = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    columns = P.expand(*A.shape[:2], *P.shape)
    return torch.cat([columns, A], dim=-1).softmax(-1)[..., P.shape[-1] :] @ v


def _synchronised(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    if device.type != "cuda":
        return call

    def run() -> object:
        result = call()
        torch.cuda.synchronize(device)
        return result

    return run


if __name__ == "__main__":
    main()
