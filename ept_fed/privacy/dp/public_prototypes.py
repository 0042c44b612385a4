"""Class prototypes that are public images, chosen for private images by the exponential mechanism.

After DPPL (Wahdany et al. 2024, arXiv 2406.08039): each public image has, for each class, the sum over private images
of the class of a similarity in [0, 1]. One private image moves these sums by at most 1, so drawing a public image with
a probability proportional to exp(ε · sum) is ε-private for adding or removing an image, as the sums only grow with more
images (Dwork and Roth 2014, section 3.4, for monotonic scores). K draws for a class cost K times as much, by simple
composition. Classes are disjoint, so they cost nothing more together. What is released is the choice of public images.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["choose_prototypes"]

Array = npt.NDArray[np.float64]


def choose_prototypes(
    public: Array,
    private: Array,
    labels: npt.NDArray[np.integer],
    *,
    classes: int,
    draws: int,
    epsilon: float,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Return the indices (C, K) of the public images that are prototypes of each class.

    Args:
        public: (m, r) features of public images; their labels are not used.
        private: (n, r) features of private images in the same space.
        labels: (n,) their class indices.
        classes: C.
        draws: K, without repetition.
        epsilon: of all draws together; infinite takes the best.
        rng: draws the images.

    Raises:
        ValueError: if there are fewer public images than draws.
    """
    if len(public) < draws:
        raise ValueError(f"{len(public)} public images for {draws} draws per class")
    unit = public / np.maximum(np.linalg.norm(public, axis=1, keepdims=True), 1e-12)
    own = private / np.maximum(np.linalg.norm(private, axis=1, keepdims=True), 1e-12)
    chosen = np.empty((classes, draws), dtype=np.int64)
    for label in range(classes):
        scores = np.clip((1.0 + own[labels == label] @ unit.T) / 2.0, 0.0, 1.0).sum(axis=0)
        if np.isinf(epsilon):
            chosen[label] = np.argsort(-scores, kind="stable")[:draws]
            continue
        # The largest of the scores with Gumbel noise is a draw of the exponential mechanism; the K largest are K draws.
        noisy = epsilon / draws * scores + rng.gumbel(size=len(scores))
        chosen[label] = np.argsort(-noisy, kind="stable")[:draws]
    return chosen
