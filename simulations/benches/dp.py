"""Measure the cost of a private training step against a plain one, and of planning and charging a private round.

    python -m simulations.benches.dp [--device cpu|cuda] [--turns 40]

The model is a ViT-S/14 at 112 px with batch 8 and seven classes, with and without context tokens. The plain step is
forward, backward and AdamW. The private step adds per-image gradients, clipping and noise. Both use a batch of exactly
8 images, which is the mean size of the Poisson sample.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from client.gate.privacy_budget import BudgetLedger
from client.site.privacy_plan import RoundCost, plan_private_round
from ept_fed.config.experiment import TrainingSettings
from ept_fed.models import PromptedViT
from ept_fed.training.image_gradients import find_image_gradients, lay_down_gradients
from ept_fed.training.losses import IMAGE_LOSSES
from ept_fed.training.private_loop import add_noise
from simulations.benches.paired_timing import time_paired

BATCH, CLASSES = 8, 7


def main() -> None:
    """Run the benchmarks and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=40)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, medians of {arguments.turns} turns")
    for tokens in (0, 1, 5):
        bench_step(device, tokens, arguments.turns)
    bench_budget()


def bench_step(device: torch.device, tokens: int, turns: int) -> None:
    """Print the time of a private and of a plain step with `tokens` = T context tokens per layer."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 112, 112, generator=generator).to(device)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator).to(device)
    model = PromptedViT.create("vit_small_patch14_dinov2", num_classes=CLASSES, tokens=tokens, image_size=112)
    model = model.to(device)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-9)
    loss_of = IMAGE_LOSSES["single_label"]

    def step_plain() -> None:
        loss = F.cross_entropy(model(images), labels)
        loss.item()  # the plain training loop does the same, to check that the loss is finite
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        synchronise(device)

    def step_private() -> None:
        sums, _ = find_image_gradients(model, images, labels, loss_of).clipped_sum(1.0)
        noisy = add_noise(sums, 1.0)
        optimizer.zero_grad(set_to_none=True)
        lay_down_gradients(model, {name: tensor / BATCH for name, tensor in noisy.items()})
        optimizer.step()
        synchronise(device)

    print(f"\ntraining step, ViT-S/14 at 112 px, batch {BATCH}, T = {tokens}")
    for name, timing in time_paired({"plain": step_plain, "private": step_private}, turns=turns).items():
        print(f"  {name:10s} {timing}")


def bench_budget() -> None:
    """Print the time to find the noise multiplier for an ε, and to charge rounds 1, 2 and 1,000 to the ledger."""
    settings = TrainingSettings.model_validate({"privacy": {"clip": 1.0, "epsilon": 8.0}})
    plan_private_round(settings, 64, 8)
    started = time.perf_counter()
    plan = plan_private_round(settings, 63, 8)
    print(f"\nnoise multiplier {plan.noise_multiplier:.3f} for ε = 8 found in {time.perf_counter() - started:.2f} s")
    cost = RoundCost("poisson-subsampled gaussian", plan, clip=1.0, delta=1e-5)
    with tempfile.TemporaryDirectory() as folder:
        ledger = BudgetLedger(Path(folder) / "budget.jsonl")
        for number in range(1, 1001):
            started = time.perf_counter()
            ledger.charge("run", number, cost, delta=1e-5, epsilon=None)
            if number in (1, 2, 1000):
                print(f"round {number:4d} charged in {1e3 * (time.perf_counter() - started):.1f} ms")


def synchronise(device: torch.device) -> None:
    """Wait until a CUDA device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
