"""K-shot samples: K training images per class of one site, from as many patients as possible."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ept_fed.data.records.records import ImageRecord
from ept_fed.seeds import derive_seed

__all__ = ["FewShotSample", "find_shortages", "sample_shots"]


@dataclass(frozen=True)
class FewShotSample:
    """A K-shot sample.

    Attributes:
        records: the drawn records, sorted by image name.
        available: number of available images per class.
        taken: number of drawn images per class; it may be more than K if images have several labels.
    """

    records: tuple[ImageRecord, ...]
    available: tuple[int, ...]
    taken: tuple[int, ...]


def sample_shots(records: Sequence[ImageRecord], *, shots: int, num_classes: int, seed: int) -> FewShotSample:
    """Draw `shots` images per class from the training records of one site.

    The classes are processed from the rarest to the most frequent (ties: lower index first). Images are drawn for a
    class until the sample contains `shots` images of it, including those drawn for earlier classes. Each draw uses the
    group that has the fewest drawn images of the class so far, in an order shuffled by a hash of seed and group. So a
    second image of a patient is drawn only after every patient has contributed one.

    With one label per image this is the plain K-shot sample, and the sample for K is a subset of the sample for K + 1.
    With several labels it is a greedy cover, which is small but not always the smallest. Images without any label are
    never drawn. The result does not depend on the order of the records.

    Args:
        records: training records of one site.
        shots: K, images per class.
        num_classes: C; labels index 0 … C - 1.
        seed: seed of this site; see `ept_fed.seeds.derive_seed`.

    Returns:
        The sample. For a class with fewer than K images, all its images are drawn; see `find_shortages`.
    """

    def shuffled(record: ImageRecord) -> tuple[int, str, int, str]:
        group, image = derive_seed(seed, "group", record.group), derive_seed(seed, "image", record.image)
        return group, record.group, image, record.image

    carriers: list[list[ImageRecord]] = [[] for _ in range(num_classes)]
    for record in sorted(records, key=shuffled):
        for label in record.labels:
            carriers[label].append(record)

    drawn: dict[str, ImageRecord] = {}
    for label in sorted(range(num_classes), key=lambda label: len(carriers[label])):
        given = Counter(record.group for record in carriers[label] if record.image in drawn)
        waiting = [record for record in carriers[label] if record.image not in drawn]
        while waiting and given.total() < shots:
            chosen = min(waiting, key=lambda record: given[record.group])  # min keeps the shuffled order among equals
            waiting.remove(chosen)
            drawn[chosen.image] = chosen
            given[chosen.group] += 1
    return FewShotSample(
        records=tuple(sorted(drawn.values(), key=lambda record: record.image)),
        available=tuple(len(having) for having in carriers),
        taken=tuple(sum(record.image in drawn for record in having) for having in carriers),
    )


def find_shortages(sample: FewShotSample, shots: int) -> dict[int, int]:
    """Return the classes with fewer than `shots` images and their numbers of images, 0 for an absent class."""
    return {label: have for label, have in enumerate(sample.available) if have < shots}
