"""Train the demo backbone on procedural images, to predict the parameters and maps of each drawing.

    python -m simulations.pretraining.train [--images 24000] [--epochs 6] [--probe ZIP] [--out FILE]

From the cls token, which is the pooled feature for heads, linear maps predict the family and the standardised
parameters of an image (lobes of a nucleus, size of granules, tints, ...). From each patch token, another linear map
predicts the share of nucleus, granules and so on in its patch. Whole batches are rotated and mirrored at random. No
photograph, no patient and no other network is used. With `--probe`, the result of the few-shot probe on its development
fold is printed after every epoch. A run takes about half an hour on one core with bfloat16 instructions: 7 minutes to
draw the images, 21 minutes to train.
"""

import argparse
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.models.backbones import Backbone, frozen_tensors
from ept_fed.models.demo_backbone import DEMO_BACKBONE, DEMO_WEIGHTS
from ept_fed.seeds import derive_seed, numpy_generator
from ept_fed.storage.files import write_bytes
from simulations.pretraining.images import FAMILIES, draw_image
from simulations.probes.backbone import embed, interval, list_images, probe, take_fold

DRAWN_SIZE, STUDENT_SIZE = 112, 64
WEIGHTS = torch.tensor([2.0, 1.0, 0.2])  # weights of the losses for numbers, maps and family
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@dataclass(frozen=True)
class TrainingImages:
    """Images (n, 3, 64, 64) uint8 and targets: families (n), numbers (n, K), maps (n, 8, 8, 6); NaN means no target."""

    images: Tensor
    families: Tensor
    numbers: Tensor
    maps: Tensor


def main() -> None:
    """Draw the images, train the student and save its weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, and processes that draw images")
    parser.add_argument("--probe", type=Path, default=None, help="zip of images in class folders, to monitor training")
    parser.add_argument("--out", type=Path, default=DEMO_WEIGHTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    training_images = draw_training_images(arguments.images, arguments.seed, arguments.threads)
    # timm and torch draw from the global generator. The fork restores its state, so that other code is not affected.
    with torch.random.fork_rng(devices=[]):
        student = teach(
            training_images,
            epochs=arguments.epochs,
            batch=arguments.batch,
            lr=arguments.lr,
            seed=arguments.seed,
            watch=arguments.probe,
        )
    tensors = {name: tensor.half().contiguous() for name, tensor in frozen_tensors(student).items()}
    write_bytes(arguments.out, save(tensors))
    print(f"{arguments.out}: {sum(t.numel() for t in tensors.values()):,} parameters")


def draw_training_images(count: int, seed: int, processes: int) -> TrainingImages:
    """Draw the images, each from its own seed, and shrink them to the student's input size."""
    started = time.perf_counter()
    with ProcessPoolExecutor(processes) as pool:
        drawn = list(pool.map(_draw_one, range(count), [seed] * count, chunksize=256))
    images, families, numbers, maps = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
    shrunk = []
    for chunk in images.permute(0, 3, 1, 2).split(512):
        small = F.interpolate(chunk.float(), size=STUDENT_SIZE, mode="bicubic", antialias=True, align_corners=False)
        shrunk.append(small.clamp(0, 255).round().byte())
    print(f"drew {count} images in {time.perf_counter() - started:.0f} s", flush=True)
    return TrainingImages(torch.cat(shrunk), families, numbers, maps)


def _draw_one(index: int, seed: int) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
    return draw_image(DRAWN_SIZE, numpy_generator(seed, "pretraining image", index))


def teach(
    training_images: TrainingImages, *, epochs: int, batch: int, lr: float, seed: int, watch: Path | None = None
) -> VisionTransformer:
    """Train the student and three linear maps on its tokens; return the student without the linear maps."""
    torch.manual_seed(derive_seed(seed, "student"))
    student = timm.create_model(DEMO_BACKBONE, pretrained=False)
    for block in student.blocks:
        block.attn.fused_attn = False  # on a CPU, unfused attention trains about 1.7 times as fast
    widths = {
        "numbers": training_images.numbers.shape[1],
        "maps": training_images.maps.shape[-1],
        "family": len(FAMILIES),
    }
    heads = nn.ModuleDict({name: nn.Linear(student.embed_dim, width) for name, width in widths.items()})
    parameters = [*student.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    training_images = replace(training_images, numbers=_standardise(training_images.numbers))
    steps, step, started = epochs * math.ceil(len(training_images.images) / batch), 0, time.perf_counter()
    for epoch in range(epochs):
        order = torch.from_numpy(numpy_generator(seed, "order", epoch).permutation(len(training_images.images)))
        rng, totals = numpy_generator(seed, "turns", epoch), torch.zeros(3)
        for chosen in order.split(batch):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
            losses = _losses(
                student, heads, training_images, chosen, turns=int(rng.integers(4)), mirror=rng.random() < 0.5
            )
            optimizer.zero_grad()
            (losses * WEIGHTS).sum().backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            totals += losses.detach() * len(chosen) / len(order)
            step += 1
        seconds = time.perf_counter() - started
        shown = ", ".join(f"{name} {total:.4f}" for name, total in zip(widths, totals.tolist(), strict=True))
        development = f", development probe {_probe(student, watch)}" if watch else ""
        print(f"epoch {epoch + 1}/{epochs}: {shown}, {seconds:.0f} s{development}", flush=True)
    return student.eval()


def _losses(
    student: VisionTransformer,
    heads: nn.ModuleDict,
    training_images: TrainingImages,
    chosen: Tensor,
    *,
    turns: int,
    mirror: bool,
) -> Tensor:
    """Return the losses for numbers, maps and family on the chosen images, rotated by `turns` quarters and mirrored."""
    images = torch.rot90(training_images.images[chosen], turns, (2, 3))
    maps = torch.rot90(training_images.maps[chosen].float(), turns, (1, 2))
    if mirror:
        images, maps = images.flip(3), maps.flip(2)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = student.forward_features((images.float() / 255 - MEAN) / STD)
    cls, patches = tokens[:, 0].float(), tokens[:, 1:].float()
    return torch.stack(
        [
            _masked_loss(heads["numbers"](cls), training_images.numbers[chosen]),
            _masked_loss(heads["maps"](patches), 4 * maps.flatten(1, 2)),  # factor 4: about unit standard deviation
            F.cross_entropy(heads["family"](cls), training_images.families[chosen]),
        ]
    )


def _masked_loss(predicted: Tensor, goal: Tensor) -> Tensor:
    """Return the smooth L1 loss over the entries of the goal that are not NaN."""
    known = ~goal.isnan()
    return F.smooth_l1_loss(predicted[known], goal[known])


def _standardise(numbers: Tensor) -> Tensor:
    mean = numbers.nanmean(0)
    deviation = (numbers - mean).square().nanmean(0).sqrt()
    return ((numbers - mean) / (deviation + 1e-6)).clamp(-4, 4)


def _probe(student: VisionTransformer, path: Path) -> str:
    names, labels, _ = list_images(path)
    chosen = take_fold(labels, "development")
    student.eval()
    backbone = Backbone(DEMO_BACKBONE, student, "", InputSpec.from_pretrained_cfg(student.pretrained_cfg, STUDENT_SIZE))
    features = embed(backbone, path, [names[i] for i in chosen])
    student.train()
    return interval([probe(features, labels[chosen], shots=16, seed=seed) for seed in range(5)])


if __name__ == "__main__":
    main()
