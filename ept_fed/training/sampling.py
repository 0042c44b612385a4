"""In which order a round visits the training images."""

import numpy as np
import numpy.typing as npt

__all__ = ["draw_order"]


def draw_order(labels: npt.NDArray[np.int64] | None, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return `count` image indices for one epoch.

    Args:
        labels: (count,) class indices to draw every present class equally often (with replacement within a class);
            None to visit every image once.
        count: images in the training set.
        rng: the round's own generator.
    """
    if labels is None:
        return rng.permutation(count)
    present = np.unique(labels)
    drawn = [rng.choice(np.flatnonzero(labels == label)) for label in rng.permutation(np.resize(present, count))]
    return np.asarray(drawn, dtype=np.int64)
