"""Examination of a site's data before the first run: counts, unreadable images, and images that leak between splits.

Every image of every site is decoded once. Two images are duplicates if their decoded pixels are equal, by SHA-256 over
height, width and RGB bytes. This finds an image that is saved under two names or in two lossless formats. It does not
find a resized or re-compressed copy.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ept_fed.config.data import AnyDataSettings
from ept_fed.data.decoding.image_store import ImageStore, UnreadableImageError
from ept_fed.data.decoding.read_all import read_all
from ept_fed.data.records.counts import CountRow, count_images, count_splits
from ept_fed.data.records.records import ImageRecord
from ept_fed.data.sources.registry import list_catalog
from ept_fed.data.splits.placement import place_records
from ept_fed.data.splits.selection import describe_scarcity, find_empty_splits
from ept_fed.data.splits.splits import find_straddling_groups

__all__ = ["DataExamination", "DuplicateSet", "StraddlingGroup", "UnreadableImage", "examine_data"]


@dataclass(frozen=True)
class UnreadableImage:
    """An image that cannot be used, and the reason as the end of a sentence."""

    image: str
    site: str
    reason: str


@dataclass(frozen=True)
class DuplicateSet:
    """Images with equal pixels, sorted, with the distinct sites, splits, groups and label sets among them."""

    images: tuple[str, ...]
    sites: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]

    @property
    def kind(self) -> str:
        """The worst boundary that the images cross, in this order: "splits", "sites", "groups" or "nothing"."""
        crossed = (("splits", self.splits), ("sites", self.sites), ("groups", self.groups))
        return next((name for name, values in crossed if len(values) > 1), "nothing")


@dataclass(frozen=True)
class StraddlingGroup:
    """A patient or lesion with images in more than one split, or at more than one site."""

    group: str
    images: int
    across: tuple[str, ...]


@dataclass(frozen=True)
class DataExamination:
    """The findings of a data examination.

    Attributes:
        classes: class names.
        by_class: images and groups per site, split and class; see `count_images`.
        by_split: the same per site and split, each image once.
        groups: number of patients or lesions.
        unreadable: images that cannot be used.
        duplicates: sets of equal images.
        straddling_splits: groups in more than one split; until they are corrected, no splits and no virtual sites are
            assigned.
        straddling_sites: groups at more than one site; each is in one split, but the sites are not independent.
        sizes: images per (width, height) in pixels, most frequent first.
        modes: images per storage mode, e.g. "JPEG RGB", most frequent first.
        refusals: sentences on counts for which a run would refuse to start.
        remarks: sentences on classes with few or no images.
    """

    classes: tuple[str, ...]
    by_class: tuple[CountRow, ...]
    by_split: tuple[CountRow, ...]
    groups: int
    unreadable: tuple[UnreadableImage, ...]
    duplicates: tuple[DuplicateSet, ...]
    straddling_splits: tuple[StraddlingGroup, ...]
    straddling_sites: tuple[StraddlingGroup, ...]
    sizes: tuple[tuple[tuple[int, int], int], ...]
    modes: tuple[tuple[str, int], ...]
    refusals: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing has to be corrected; groups at several sites and scarce classes do not count."""
        return not (self.unreadable or self.duplicates or self.straddling_splits or self.refusals)

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(int(row["images"]) for row in self.by_split)

    def to_json(self) -> dict[str, Any]:
        """Return the findings as JSON-compatible values."""
        return {
            "schema": 1,
            "status": "clean" if self.clean else "faults",
            "images": self.images,
            **asdict(self),
            "duplicates": [{"across": found.kind, **asdict(found)} for found in self.duplicates],
            "sizes": [{"width": width, "height": height, "images": n} for (width, height), n in self.sizes],
            "modes": [{"mode": mode, "images": n} for mode, n in self.modes],
        }


@dataclass(frozen=True)
class _Look:
    """Properties of one decoded image."""

    digest: bytes
    size: tuple[int, int]
    mode: str


def examine_data(
    settings: AnyDataSettings,
    seed: int,
    *,
    on_start: Callable[[int], None] = lambda _: None,
    on_image: Callable[[], None] = lambda: None,
) -> DataExamination:
    """Open a source as a run would, decode every image, and return the findings.

    Args:
        settings: the data section; few-shot settings and feature shift are not applied.
        seed: the run's seed, which determines virtual sites and splits.
        on_start: called with the number of images.
        on_image: called after each image.

    Raises:
        InputRefusedError: with all problems of the source or the partition.
    """
    catalog = list_catalog(settings, settings.place_by(seed))
    straddling = _find_straddling(catalog.records, find_straddling_groups(catalog.records), lambda record: record.split)
    records = catalog.records if straddling else place_records(catalog.records, settings, seed)
    on_start(len(records))

    def look(record: ImageRecord) -> _Look | UnreadableImage:
        try:
            return _look(record.image, catalog.store)
        except UnreadableImageError as error:
            return UnreadableImage(record.image, record.site, error.reason)
        finally:
            on_image()

    looks = read_all(look, records)
    seen = [(record, found) for record, found in zip(records, looks, strict=True) if isinstance(found, _Look)]
    return DataExamination(
        classes=catalog.classes,
        by_class=tuple(count_images(records, catalog.classes)),
        by_split=tuple(count_splits(records)),
        groups=len({record.group for record in records}),
        unreadable=tuple(found for found in looks if isinstance(found, UnreadableImage)),
        duplicates=_find_duplicates(seen, catalog.classes),
        straddling_splits=straddling,
        straddling_sites=_find_straddling(records, _find_at_several_sites(records), lambda record: record.site),
        sizes=tuple(Counter(found.size for _, found in seen).most_common()),
        modes=tuple(Counter(found.mode for _, found in seen).most_common()),
        refusals=() if straddling else _describe_refusals(records),
        remarks=() if straddling else describe_scarcity(records, catalog.classes, settings.shots),
    )


def _look(image: str, store: ImageStore) -> _Look:
    pixels = store.read(image)
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{height}x{width}:".encode())
    digest.update(pixels.data if pixels.flags.c_contiguous else pixels.tobytes())
    return _Look(digest.digest(), (width, height), store.mode(image))


def _find_duplicates(seen: Sequence[tuple[ImageRecord, _Look]], classes: Sequence[str]) -> tuple[DuplicateSet, ...]:
    alike: defaultdict[bytes, list[ImageRecord]] = defaultdict(list)
    for record, found in seen:
        alike[found.digest].append(record)
    sets = []
    for records in alike.values():
        if len(records) > 1:
            labels = {tuple(classes[label] for label in record.labels) for record in records}
            sets.append(
                DuplicateSet(
                    images=tuple(sorted(record.image for record in records)),
                    sites=tuple(sorted({record.site for record in records})),
                    splits=tuple(sorted({record.split or "unassigned" for record in records})),
                    groups=tuple(sorted({record.group for record in records})),
                    labels=tuple(sorted(labels)),
                )
            )
    return tuple(sorted(sets, key=lambda found: found.images))


def _find_straddling(
    records: Iterable[ImageRecord], groups: Iterable[str], place: Callable[[ImageRecord], str | None]
) -> tuple[StraddlingGroup, ...]:
    members: dict[str, list[ImageRecord]] = {group: [] for group in groups}
    for record in records:
        if record.group in members:
            members[record.group].append(record)
    return tuple(
        StraddlingGroup(group, len(held), tuple(sorted({place(record) or "unassigned" for record in held})))
        for group, held in members.items()
    )


def _find_at_several_sites(records: Iterable[ImageRecord]) -> list[str]:
    sites: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        sites[record.group].add(record.site)
    return sorted(group for group, named in sites.items() if len(named) > 1)


def _describe_refusals(records: Sequence[ImageRecord]) -> tuple[str, ...]:
    sites = sorted({record.site for record in records})
    return tuple(f"{problem.value} {problem.fix}" for problem in find_empty_splits(records, sites))
