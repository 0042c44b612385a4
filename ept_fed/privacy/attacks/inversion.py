"""Update inversion: find images whose gradient has the direction of an observed update.

Geiping et al. 2020, "Inverting gradients": minimise 1 - cos(gradient of the guess, observed) + a · total variation over
images within the range of real images. The optimiser is Adam on the signs of the gradient. Its rate is divided by ten
after 3/8, 5/8 and 7/8 of the steps. The attacker has the labels here, as in that paper's main experiments.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ept_fed.evaluation.metrics import Array

__all__ = ["align_images", "match_gradients", "total_variation"]


def match_gradients(
    gradients_of: Callable[[Tensor], Tensor],
    observed: Tensor,
    start: Tensor,
    bounds: tuple[Tensor, Tensor],
    *,
    steps: int,
    rate: float = 0.1,
    smoothness: float = 0.1,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return the images (G, B, 3, H, W) of the search that explain the observed gradients best.

    Args:
        gradients_of: images (G, B, 3, H, W) -> (G, n), differentiable.
        observed: (G, n), any positive multiple of the gradient; an update of plain SGD is a negative multiple.
        start: (G, B, 3, H, W), the first guess.
        bounds: smallest and largest value of a pixel, broadcastable to the images.
        steps: number of Adam steps.
        rate: learning rate of Adam, in units of the images.
        smoothness: a, the weight of the total variation.
        on_step: called after every step.
    """
    guess = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([guess], lr=rate)
    milestones = [max(1, steps * eighths // 8) for eighths in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    best, least = start.clone(), torch.full((len(start),), torch.inf, dtype=start.dtype, device=start.device)
    for _ in range(steps):
        distance = 1.0 - F.cosine_similarity(gradients_of(guess), observed, dim=1)
        cost = distance + smoothness * total_variation(guess)
        better = cost.detach() < least
        least[better], best[better] = cost.detach()[better], guess.detach()[better]
        (gradient,) = torch.autograd.grad(cost.sum(), guess)
        guess.grad = gradient.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            guess.copy_(torch.minimum(torch.maximum(guess, bounds[0]), bounds[1]))
        on_step()
    return best


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels per batch: (G, B, 3, H, W) -> (G,)."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)
    across = (images[..., 1:] - images[..., :-1]).abs().flatten(1).mean(1)
    return down + across


def align_images(found: Array, true: Array) -> Array:
    """Return the order (B,) in which the found images (B, …) match the true images (B, …) best, by squared error.

    A batch's gradient does not determine the order of its images, so the attack is granted the best order.
    """
    errors = np.mean((true[:, None].astype(np.float64) - found[None].astype(np.float64)) ** 2, axis=(2, 3, 4))
    return np.asarray(linear_sum_assignment(errors)[1])
