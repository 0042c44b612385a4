"""Preparation of the data: `prepare_data` returns the training, validation and test images of every site."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ept_fed.config.data import AnyDataSettings
from ept_fed.data.datasets.cache import CachedDataset, load_image, pool
from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.data.decoding.image_store import ImageStore, UnreadableImageError
from ept_fed.data.decoding.read_all import read_all
from ept_fed.data.records.counts import CountRow, count_images
from ept_fed.data.records.records import SPLITS, Catalog, ImageRecord
from ept_fed.data.sources.registry import open_catalog
from ept_fed.data.splits.placement import place_records
from ept_fed.data.splits.selection import (
    describe_scarcity,
    describe_thinning,
    find_empty_splits,
    find_lost_shots,
    select_records,
)
from ept_fed.errors import InputRefusedError, Problem

if TYPE_CHECKING:
    from ept_fed.data.datasets.transforms import Pipelines

__all__ = ["CachedDataset", "PreparedData", "SiteData", "load_for_training", "pool", "prepare_data"]

_NAMED = 10


@dataclass(frozen=True)
class SiteData:
    """The three datasets of one site; validation may be empty."""

    name: str
    classes: tuple[str, ...]
    task: str
    train: CachedDataset
    validation: CachedDataset
    test: CachedDataset

    def parts(self) -> tuple[CachedDataset, CachedDataset, CachedDataset]:
        """Return the three datasets in the order of `SPLITS`."""
        return self.train, self.validation, self.test


@dataclass(frozen=True)
class PreparedData:
    """The prepared data of all sites on this machine.

    Attributes:
        sites: the sites by name, sorted.
        classes: class names, in the order that labels index.
        task: "single_label" or "multi_label".
        notes: sentences for the user on absent classes, test images left out, and dropped images.
        thinned: by site, the note that not all of its test images are used; the site's own report includes it.
        partition: numbers of images per site, split and class, before the few-shot sample; see `count_images`.
    """

    sites: dict[str, SiteData]
    classes: tuple[str, ...]
    task: str
    notes: tuple[str, ...]
    thinned: Mapping[str, str]
    partition: tuple[CountRow, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over sites, splits, names and labels of all images."""
        content = hashlib.sha256(json.dumps([self.task, list(self.classes)]).encode())
        for name, site in self.sites.items():
            for split, part in zip(SPLITS, site.parts(), strict=True):
                for record in part.records:
                    content.update(json.dumps([name, split, record.image, list(record.labels)]).encode())
        return content.hexdigest()

    def summary(self) -> list[CountRow]:
        """Count the images in use; see `count_images`."""
        used = [record for site in self.sites.values() for part in site.parts() for record in part.records]
        return count_images(used, self.classes)


def prepare_data(settings: AnyDataSettings, spec: InputSpec, seed: int) -> PreparedData:
    """Open the source, assign virtual sites, split by group, draw the K-shot samples, and cache the images.

    Args:
        settings: the data section of an experiment.
        spec: input format of the backbone.
        seed: the run's seed.

    Raises:
        InputRefusedError: with all problems of all sites, such as a site without training or test images, classes
            with fewer than K images if `scarce_classes` is "refuse", or more unreadable images than
            `max_unreadable`.
    """
    from ept_fed.data.datasets.transforms import build_pipelines

    catalog, records, store = _open(settings, seed)
    selected, problems = select_records(records, catalog.classes, settings, seed)
    pipelines = build_pipelines(spec, settings.augmentation)
    images, failures = _load_images(selected, store, pipelines)
    problems += _check_failures(failures, len(selected), settings.max_unreadable)
    if problems:
        raise InputRefusedError(problems)

    kept = [record for record in selected if record.image in images]
    names = sorted({record.site for record in selected})
    problems = find_empty_splits(kept, names)
    if failures and settings.scarce_classes == "refuse":
        problems += find_lost_shots(selected, kept, catalog.classes, settings.shots)
    if problems:
        raise InputRefusedError(problems)

    def cache(site: str, split: str) -> CachedDataset:
        chosen = [record for record in kept if record.site == site and record.split == split]
        return CachedDataset(
            chosen,
            [images[record.image] for record in chosen],
            classes=catalog.classes,
            task=catalog.task,
            pipelines=pipelines,
        )

    sites = {
        name: SiteData(name, catalog.classes, catalog.task, *(cache(name, split) for split in SPLITS)) for name in names
    }
    thinned = describe_thinning(records, selected, kept, settings.test_shots)
    notes = (
        *describe_scarcity(kept, catalog.classes, settings.shots),
        *thinned.values(),
        *_describe_failures(failures),
    )
    partition = tuple(count_images(records, catalog.classes))
    return PreparedData(sites, catalog.classes, catalog.task, notes, thinned, partition)


def load_for_training(
    settings: AnyDataSettings, spec: InputSpec, seed: int, chosen: Mapping[str, Sequence[ImageRecord]]
) -> dict[str, CachedDataset]:
    """Return the given images of each site, whatever their split, as they would be kept for training.

    Args:
        settings: the data section of the experiment that `prepare_data` found these records with.
        spec: input format of the backbone.
        seed: the run's seed.
        chosen: records by site.

    Raises:
        InputRefusedError: if an image can no longer be read.
    """
    from ept_fed.data.datasets.transforms import build_pipelines

    catalog, _, store = _open(settings, seed)
    pipelines, found = build_pipelines(spec, settings.augmentation), {}
    for site, records in chosen.items():
        kept = [replace(record, split="train") for record in records]
        images, failures = _load_images(kept, store, pipelines)
        if failures:
            raise InputRefusedError(_check_failures(failures, len(kept), 0.0))
        loaded = [images[record.image] for record in kept]
        found[site] = CachedDataset(kept, loaded, classes=catalog.classes, task=catalog.task, pipelines=pipelines)
    return found


def _open(settings: AnyDataSettings, seed: int) -> tuple[Catalog, Sequence[ImageRecord], ImageStore]:
    """Return the catalog, its records with their sites and splits, and the store with the sites' own appearance."""
    catalog = open_catalog(settings, settings.place_by(seed))
    records = place_records(catalog.records, settings, seed)
    if settings.partition.feature_shift is None:
        return catalog, records, catalog.store
    from ept_fed.data.sources.feature_shift import shift_features

    store = shift_features(catalog.store, records, settings.partition.feature_shift, settings.place_by(seed))
    return catalog, records, store


def _load_images(
    records: Sequence[ImageRecord], store: ImageStore, pipelines: "Pipelines"
) -> tuple[dict[str, Tensor], list[UnreadableImageError]]:
    """Return the cached tensor of every readable image, and the errors of the other images."""

    def load(record: ImageRecord) -> Tensor | UnreadableImageError:
        try:
            return load_image(record.image, store, pipelines, training=record.split == "train")
        except UnreadableImageError as error:
            return error

    with _one_thread_each():
        made = read_all(load, records)
    images, failures = {}, []
    for record, loaded in zip(records, made, strict=True):
        if isinstance(loaded, UnreadableImageError):
            failures.append(loaded)
        else:
            images[record.image] = loaded
    return images, failures


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Limit torch to one thread per Python thread that is started inside.

    Two Python threads that each split a small resize over two cores take twice as long as one after the other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_failures(failures: Sequence[UnreadableImageError], total: int, allowed: float) -> list[Problem]:
    if not failures or len(failures) <= allowed * total:
        return []
    share = math.ceil(1000 * len(failures) / total) / 1000
    drop = f", or set data.max_unreadable={share} to drop them" if share < 1 else ""
    counts = f"{len(failures)} of {total} selected images cannot be used"
    fix = f"{counts}: {_list_failures(failures)}; restore them{drop}"
    return [Problem("data.max_unreadable", allowed, fix)]


def _describe_failures(failures: Sequence[UnreadableImageError]) -> list[str]:
    return [f"{len(failures)} image(s) dropped: {_list_failures(failures)}"] if failures else []


def _list_failures(failures: Sequence[UnreadableImageError]) -> str:
    more = f", and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
    return ", ".join(f"{error.image} {error.reason}" for error in failures[:_NAMED]) + more
