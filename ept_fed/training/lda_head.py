"""The head that a site computes anew for the prompts it has, instead of training it.

A head that was trained beside one site's prompts does not fit the federation's: every exchange moves the features away
from under it. Computed in closed form from the features under the prompts at hand, it always fits, at the cost of a few
forward passes.

A head that is computed from all sites' shared moments is held while a round trains: it has seen the images of both
halves, among those of everyone.

Prompts that are trained beside a head fitted to the same few images have nothing left to learn from them. So each epoch
fits the head to one half of the images and trains the prompts on the other, then the other way round: the prompts learn
features whose discriminant holds for images it has not seen. (Closed-form base learners with support and query images:
Bertinetto et al. 2019, R2-D2; here Fisher's discriminant, within every site of a federation.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ept_fed.data.datasets.prepare import CachedDataset
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.seeds import derive_seed
from ept_fed.training.fixed_head import FixedHead
from ept_fed.training.lda import ClassStatistics, measure_statistics, solve_lda

__all__ = ["VIEWS", "FeaturesDivergedError", "HeadFit"]

# Each image as it is tested, and in three random crops: with few shots these are most of what is known of the spread.
VIEWS = 4


class FeaturesDivergedError(RuntimeError):
    """The prompts lead to features that are no numbers, so no head can be computed from them."""


@dataclass(frozen=True)
class HeadFit:
    """How a site computes its head.

    Attributes:
        shrinkage: see `solve_lda`.
        seed: of the random crops.
        batch_size: images per forward pass.
        bfloat16: whether to compute features in bfloat16.
        received: statistics of all sites' images, if they are shared; without moments the site's own say how the
            features vary.
        common: the head that the LDA head is added to, if prompts train under one; None where it is all there is.
    """

    shrinkage: float
    seed: int
    batch_size: int
    bfloat16: bool
    received: ClassStatistics | None = None
    fixed: FixedHead | None = None

    @torch.no_grad()
    def apply(self, model: TunedViT, images: CachedDataset, known: Sequence[int] | None = None) -> None:
        """Set the model's head to the LDA head of its features of a site's training images, or of all sites'.

        With a fixed head, to the sum of both.

        Args:
            model: its head is written, everything else stays; it is in evaluation mode afterwards.
            images: the site's training images.
            known: indices of the images to use, at least one; None uses all.

        Raises:
            FeaturesDivergedError: if a feature is not finite; the head is as it was.
        """
        if self.received is None or self.received.moments is None:
            own = self.measure(model, images, known)
        else:
            own = self.received
        weight, bias = solve_lda(
            own, self.received or own, multi_label=images.task == "multi_label", shrinkage=self.shrinkage
        )
        if self.fixed is not None:
            carried = len(images if known is None else known) * own.shares
            present = carried[carried > 0]
            weight, bias = self.fixed.add(weight, bias, float(present.mean()) if len(present) else 0.0)
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(bias))

    @torch.inference_mode()
    def measure(self, model: TunedViT, images: CachedDataset, known: Sequence[int] | None = None) -> ClassStatistics:
        """Return the statistics of the model's features of a site's training images; arguments and errors: `apply`."""
        model.eval()
        features: list[npt.NDArray[Any]] = []
        labels: list[npt.NDArray[Any]] = []
        for view in range(VIEWS):
            augment = derive_seed(self.seed, "head", view) if view else None
            for batch, targets in images.batches(self.batch_size, order=known, augment_seed=augment):
                with torch.autocast(model.device.type, torch.bfloat16, enabled=self.bfloat16):
                    seen = model.forward_features(batch.to(model.device))
                features.append(seen.float().cpu().numpy())
                labels.append(targets.numpy())
        seen_features = np.concatenate(features)
        if not np.isfinite(seen_features).all():
            raise FeaturesDivergedError("the prompts lead to features that are no numbers; lower the learning rates")
        return measure_statistics(seen_features, np.concatenate(labels), classes=model.head.out_features)
