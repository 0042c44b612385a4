"""How many images and groups each site has, by split and class."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from ept_fed.data.records import SPLITS, ImageRecord

__all__ = ["COUNT_COLUMNS", "CountRow", "count_images"]

CountRow = dict[str, str | int]
COUNT_COLUMNS = ("site", "split", "class", "images", "groups")


def count_images(records: Iterable[ImageRecord], classes: Sequence[str]) -> list[CountRow]:
    """Count per site, split and class, zeros included; an image with several labels counts for each.

    Returns:
        Rows of site, split, class, images and groups; sites sorted. Splits are those of `SPLITS`, each record has one.
    """
    groups: defaultdict[tuple[str, str | None, int], Counter[str]] = defaultdict(Counter)
    sites = set()
    for record in records:
        sites.add(record.site)
        for label in record.labels:
            groups[record.site, record.split, label][record.group] += 1
    return [
        {
            "site": site,
            "split": split,
            "class": name,
            "images": groups[site, split, label].total() if (site, split, label) in groups else 0,
            "groups": len(groups[site, split, label]) if (site, split, label) in groups else 0,
        }
        for site in sorted(sites)
        for split in SPLITS
        for label, name in enumerate(classes)
    ]
