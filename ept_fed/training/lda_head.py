"""The LDA head of a site, which is not trained but computed again for the current prompts.

A head that was trained together with one site's prompts does not fit the federation's prompts, because the features
change with every exchange. A head that is computed in closed form from the current features always fits. It costs a few
forward passes.

Prompts have nothing left to learn from images to which the head is already fitted. So in each epoch, the head is fitted
to one half of the images and the prompts train on the other half, and then the halves are swapped. The prompts learn
features for which the LDA head also fits images that it was not computed from. (Closed-form base learners with support
and query images: Bertinetto et al. 2019, R2-D2; here with Fisher's discriminant, within every site of a federation.)

A head that is computed from the shared moments of all sites stays the same during a round. It depends on the images of
both halves, among those of all sites.
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

# Each image without augmentation, as in evaluation, and in three random crops. With few shots, these views give most of
# the information on the spread.
VIEWS = 4


class FeaturesDivergedError(RuntimeError):
    """The prompts produce features that are not finite, so no head can be computed from them."""


@dataclass(frozen=True)
class HeadFit:
    """The way in which a site computes its head.

    Attributes:
        shrinkage: see `solve_lda`.
        seed: for the random crops.
        batch_size: images per forward pass.
        bfloat16: whether to compute features in bfloat16.
        received: statistics of all sites' images, if they are shared. If they have no moments, the site's own images
            give the covariance.
        fixed: the fixed head to which the LDA head is added; None if the LDA head is used without a fixed head.
    """

    shrinkage: float
    seed: int
    batch_size: int
    bfloat16: bool
    received: ClassStatistics | None = None
    fixed: FixedHead | None = None

    @torch.no_grad()
    def apply(self, model: TunedViT, images: CachedDataset, known: Sequence[int] | None = None) -> None:
        """Set the model's head to the LDA head of the site's training images, or of all sites' images.

        With a fixed head, the model's head is set to the weighted sum of both.

        Args:
            model: only its head changes; it is in evaluation mode afterwards.
            images: the site's training images.
            known: indices of the images to use, at least one; None uses all.

        Raises:
            FeaturesDivergedError: if a feature is not finite; the head is then unchanged.
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
        """Return the statistics of the features of a site's training images; arguments and errors as for `apply`."""
        model.eval()
        features: list[npt.NDArray[Any]] = []
        labels: list[npt.NDArray[Any]] = []
        for view in range(1 + min(VIEWS - 1, images.views or VIEWS - 1)):
            augment = derive_seed(self.seed, "head", view) if view else None
            kept = view - 1 if view and images.views else None
            for batch, targets in images.batches(self.batch_size, order=known, augment_seed=augment, view=kept):
                with torch.autocast(model.device.type, torch.bfloat16, enabled=self.bfloat16):
                    seen = model.forward_features(batch.to(model.device))
                features.append(seen.float().cpu().numpy())
                labels.append(targets.numpy())
        seen_features = np.concatenate(features)
        if not np.isfinite(seen_features).all():
            raise FeaturesDivergedError("the prompts produce features that are not finite; lower the learning rates")
        return measure_statistics(seen_features, np.concatenate(labels), classes=model.head.out_features)
