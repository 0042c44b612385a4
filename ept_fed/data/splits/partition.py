"""Assignment of images to sites: the sites that the source names, or virtual sites, which get whole groups."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ept_fed.config.partition import AnyPartition, VirtualPartition
from ept_fed.data.records.records import ImageRecord
from ept_fed.data.splits.partitioners import PARTITIONERS, Groups, TooFewImagesError
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.seeds import derive_seed

__all__ = ["find_unknown_sites", "keep_sites", "name_sites", "partition_records"]

_SHOWN = 5
_REMEDIES = {
    "iid": "lower data.partition.sites",
    "dirichlet": "raise data.partition.alpha, or lower data.partition.sites or data.partition.min_images",
    "shards": "lower data.partition.sites or data.partition.shards_per_site",
    "quantity": "lower data.partition.sigma, data.partition.sites or data.partition.min_images",
}


def partition_records(records: Sequence[ImageRecord], partition: AnyPartition, seed: int) -> tuple[ImageRecord, ...]:
    """Assign whole groups to virtual sites; the result does not depend on the order of the records.

    The images of all sites that the source names are merged first. A group has the split and the first label of its
    first image by name.

    Args:
        records: records of all sites.
        partition: its kind selects from `PARTITIONERS`; "sites" keeps the source's own sites.
        seed: the run's seed.

    Returns:
        The records in the given order, with sites "site-1", "site-2", …; see `name_sites`.

    Raises:
        InputRefusedError: if there are more sites than groups, or if a site would get too few images.
    """
    if not isinstance(partition, VirtualPartition):
        return tuple(records)
    names, groups = _collect_groups(records, seed)
    if partition.sites > len(groups):
        fix = f"the data has {len(groups)} groups, and every site needs one; lower it to at most {len(groups)}"
        raise InputRefusedError([Problem("data.partition.sites", partition.sites, fix)])
    try:
        dealt = PARTITIONERS[partition.kind](groups, partition, seed)
    except TooFewImagesError as error:
        needed = getattr(partition, "min_images", 1)
        raise InputRefusedError([_describe_shortage(partition.kind, error.images, needed)]) from error
    images = np.bincount(dealt, weights=groups.sizes, minlength=partition.sites).astype(np.int64)
    if not images.all():
        raise InputRefusedError([_describe_shortage(partition.kind, images, 1)])
    called = name_sites(partition.sites)
    site_of = {name: called[site] for name, site in zip(names, dealt.tolist(), strict=True)}
    return tuple(replace(record, site=site_of[record.group]) for record in records)


def name_sites(count: int) -> tuple[str, ...]:
    """Return the names of generated sites "site-1", "site-2", …, padded with zeros so that they sort by number."""
    width = len(str(count))
    return tuple(f"site-{number:0{width}d}" for number in range(1, count + 1))


def find_unknown_sites(records: Sequence[ImageRecord], wanted: Sequence[str] | None) -> list[Problem]:
    """Return a problem for each wanted site that has no record; `None` stands for all sites."""
    known = sorted({record.site for record in records})
    fix = f"the data has no record of this site; it has {', '.join(known) or 'none'}"
    return [Problem("data.sites", site, fix) for site in wanted or () if site not in known]


def keep_sites(records: Sequence[ImageRecord], wanted: Sequence[str] | None) -> tuple[ImageRecord, ...]:
    """Keep the records of the wanted sites; `None` keeps all.

    Raises:
        InputRefusedError: with every wanted site that has no record.
    """
    problems = find_unknown_sites(records, wanted)
    if problems:
        raise InputRefusedError(problems)
    return tuple(record for record in records if wanted is None or record.site in wanted)


def _collect_groups(records: Sequence[ImageRecord], seed: int) -> tuple[list[str], Groups]:
    firsts: dict[str, ImageRecord] = {}
    for record in records:
        known = firsts.get(record.group)
        if known is None or record.image < known.image:
            firsts[record.group] = record
    sizes = Counter(record.group for record in records)

    def place_in_pack(group: str) -> tuple[str, int, int, str]:
        first = firsts[group]
        label = first.labels[0] if first.labels else -1
        return first.split or "", label, derive_seed(seed, "virtual site", group), group

    names = sorted(firsts, key=place_in_pack)
    splits = sorted({first.split or "" for first in firsts.values()})
    return names, Groups(
        sizes=np.array([sizes[name] for name in names], dtype=np.int64),
        labels=np.array([firsts[name].labels[0] if firsts[name].labels else -1 for name in names], dtype=np.int64),
        splits=np.array([splits.index(firsts[name].split or "") for name in names], dtype=np.int64),
    )


def _describe_shortage(kind: str, images: np.ndarray, needed: int) -> Problem:
    short = [(name, int(have)) for name, have in zip(name_sites(len(images)), images, strict=True) if have < needed]
    named = ", ".join(f"{name} with {have} image(s)" for name, have in short[:_SHOWN])
    more = f" and {len(short) - _SHOWN} more" if len(short) > _SHOWN else ""
    least = f"fewer than min_images = {needed}" if needed > 1 else "empty"
    return Problem("data.partition", kind, f"leaves {named}{more}: {least}; {_REMEDIES[kind]}")
