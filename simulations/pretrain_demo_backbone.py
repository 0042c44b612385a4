"""Train the demo backbone by distilling a ViT-S/14 on procedural images.

    python -m simulations.pretrain_demo_backbone --teacher FILE [--images 40000] [--epochs 6] [--out FILE]

The teacher (DINOv2-style, 112 px) and the student (`vit_demo_patch8_64`, 64 px) see the same drawn image; both lay an
8 × 8 grid of patches over it, so the student learns the teacher's cls token and all 64 patch tokens, each dimension
standardised, under a smooth L1 loss. The teacher is needed only here. About half an hour on two cores.
"""

import argparse
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from ept_fed.artefacts import write_bytes
from ept_fed.models.backbones import create_backbone, frozen_tensors
from ept_fed.models.demo_backbone import DEMO_BACKBONE, DEMO_WEIGHTS
from ept_fed.seeds import derive_seed, numpy_generator
from simulations.pretraining_images import draw_image

TEACHER, TEACHER_SIZE, STUDENT_SIZE = "vit_small_patch14_dinov2", 112, 64
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def main() -> None:
    """Draw, embed, distil, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="weights of the ViT-S/14")
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=DEMO_WEIGHTS)
    arguments = parser.parse_args()
    images = draw_images(arguments.images, arguments.seed)
    targets = embed_with_teacher(images, arguments.teacher)
    student = distil(
        images, targets, epochs=arguments.epochs, batch=arguments.batch, lr=arguments.lr, seed=arguments.seed
    )
    tensors = {name: tensor.half().contiguous() for name, tensor in frozen_tensors(student).items()}
    write_bytes(arguments.out, save(tensors))
    print(f"{arguments.out}: {sum(t.numel() for t in tensors.values()):,} parameters")


def draw_images(count: int, seed: int) -> Tensor:
    """Return (count, 3, 112, 112) uint8 procedural images, drawn by two processes, each image from its own seed."""
    started = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        drawn = list(pool.map(_draw_one, range(count), [seed] * count, chunksize=256))
    images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()
    print(f"drew {count} images in {time.perf_counter() - started:.0f} s", flush=True)
    return images


def _draw_one(index: int, seed: int) -> np.ndarray:
    return draw_image(TEACHER_SIZE, numpy_generator(seed, "pretraining image", index))


@torch.inference_mode()
def embed_with_teacher(images: Tensor, weights: str) -> Tensor:
    """Return the teacher's final tokens (n, 1 + 64, 384) in float16, standardised per dimension."""
    started = time.perf_counter()
    teacher = create_backbone(TEACHER, weights=weights, image_size=TEACHER_SIZE, seed=0).vit
    parts = []
    for chunk in images.split(128):
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(teacher.forward_features(_normalise(chunk)).half())
    tokens = torch.cat(parts)
    for part in (tokens[:, :1], tokens[:, 1:]):
        sample = part[:4096].float()
        part.sub_(sample.mean((0, 1)).half()).div_(sample.std((0, 1)).half() + 1e-3)
    print(f"embedded in {time.perf_counter() - started:.0f} s", flush=True)
    return tokens


def distil(images: Tensor, targets: Tensor, *, epochs: int, batch: int, lr: float, seed: int) -> nn.Module:
    """Train the student and two linear projections to the teacher's tokens; return the student without them."""
    torch.manual_seed(derive_seed(seed, "student"))
    student = timm.create_model(DEMO_BACKBONE, pretrained=False)
    cls_projection, patch_projection = (nn.Linear(student.embed_dim, targets.shape[-1]) for _ in range(2))
    parameters = [*student.parameters(), *cls_projection.parameters(), *patch_projection.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    steps, step, started = epochs * math.ceil(len(images) / batch), 0, time.perf_counter()
    for epoch in range(epochs):
        order = torch.from_numpy(numpy_generator(seed, "order", epoch).permutation(len(images)))
        total = 0.0
        for chosen in order.split(batch):
            warm_up = min(1.0, (step + 1) / 200)
            for group in optimizer.param_groups:
                group["lr"] = lr * warm_up * 0.5 * (1 + math.cos(math.pi * step / steps))
            small = F.interpolate(
                images[chosen].float(), size=STUDENT_SIZE, mode="bicubic", antialias=True, align_corners=False
            )
            tokens = student.forward_features(_normalise(small.clamp(0, 255)))
            goal = targets[chosen].float()
            loss = F.smooth_l1_loss(cls_projection(tokens[:, 0]), goal[:, 0])
            loss = loss + F.smooth_l1_loss(patch_projection(tokens[:, 1:]), goal[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            total += loss.item() * len(chosen)
            step += 1
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}/{epochs}: loss {total / len(images):.4f}, {seconds:.0f} s", flush=True)
    return student.eval()


def _normalise(images: Tensor) -> Tensor:
    return (images.float() / 255 - MEAN) / STD


if __name__ == "__main__":
    main()
