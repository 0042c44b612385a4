"""The order in which a round visits the training images, and the split of these images into halves."""

import numpy as np
import numpy.typing as npt

__all__ = ["draw_order", "halve"]


def draw_order(labels: npt.NDArray[np.int64] | None, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return `count` image indices for one epoch.

    Args:
        labels: (count,) class indices, to draw every present class equally often (with replacement within a class);
            None to visit every image once.
        count: number of images in the training set.
        rng: the round's own generator.
    """
    if labels is None:
        return rng.permutation(count)
    present = np.unique(labels)
    drawn = [rng.choice(np.flatnonzero(labels == label)) for label in rng.permutation(np.resize(present, count))]
    return np.asarray(drawn, dtype=np.int64)


def halve(
    labels: npt.NDArray[np.number], rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split images into two halves, each with half of every class.

    If a class has only one image, both halves contain it, so that each half has all classes of the other.

    Args:
        labels: (n,) class indices; labels (n, C) of 0 and 1 are split without regard to classes.
        rng: decides which images are in which half, and which half gets the additional image of an odd number.
    """
    groups = [np.arange(len(labels))] if labels.ndim == 2 else [np.flatnonzero(labels == c) for c in np.unique(labels)]
    halves: tuple[list[int], list[int]] = ([], [])
    for group in groups:
        drawn = rng.permutation(group).tolist()
        cut = (len(drawn) + int(rng.integers(2))) // 2
        first, second = (drawn, drawn) if len(drawn) == 1 else (drawn[:cut], drawn[cut:])
        halves[0].extend(first)
        halves[1].extend(second)
    return np.asarray(sorted(halves[0]), dtype=np.int64), np.asarray(sorted(halves[1]), dtype=np.int64)
