"""Numbers of images and groups per site, split and class."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from ept_fed.data.records.records import SPLITS, ImageRecord

__all__ = ["COUNT_COLUMNS", "CountRow", "count_images", "count_splits"]

CountRow = dict[str, str | int]
COUNT_COLUMNS = ("site", "split", "class", "images", "groups")
_UNASSIGNED = "unassigned"


def count_images(records: Sequence[ImageRecord], classes: Sequence[str]) -> list[CountRow]:
    """Count images and groups per site, split and class, including zeros.

    An image with several labels counts for each of them.

    Returns:
        Rows of site, split, class, images and groups, sites sorted; the split is "unassigned" for records without one.
    """
    groups: defaultdict[tuple[str, str, int], Counter[str]] = defaultdict(Counter)
    for record in records:
        for label in record.labels:
            groups[record.site, record.split or _UNASSIGNED, label][record.group] += 1
    empty: Counter[str] = Counter()
    return [
        {
            "site": site,
            "split": split,
            "class": name,
            "images": groups.get((site, split, label), empty).total(),
            "groups": len(groups.get((site, split, label), empty)),
        }
        for site in _list_sites(records)
        for split in _list_splits(records)
        for label, name in enumerate(classes)
    ]


def count_splits(records: Sequence[ImageRecord]) -> list[CountRow]:
    """Count images and groups per site and split, each image once; see `count_images`.

    Returns:
        Rows of site, split, images and groups.
    """
    groups: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        groups[record.site, record.split or _UNASSIGNED][record.group] += 1
    return [
        {"site": site, "split": split, "images": groups[site, split].total(), "groups": len(groups[site, split])}
        for site in _list_sites(records)
        for split in _list_splits(records)
    ]


def _list_sites(records: Iterable[ImageRecord]) -> list[str]:
    return sorted({record.site for record in records})


def _list_splits(records: Iterable[ImageRecord]) -> list[str]:
    return [*SPLITS, _UNASSIGNED] if any(record.split is None for record in records) else [*SPLITS]
