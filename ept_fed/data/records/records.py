"""The records of a source before any image is opened: one per image, and the catalog that holds them."""

from dataclasses import dataclass

from ept_fed.data.decoding.image_store import ImageStore

__all__ = ["ONE_SITE", "SPLITS", "Catalog", "ImageRecord"]

SPLITS = ("train", "validation", "test")
ONE_SITE = "all"


@dataclass(frozen=True)
class ImageRecord:
    """One image of one site.

    Attributes:
        image: key in the catalog's image store; unique in a catalog.
        labels: class indices, ascending; exactly one for single_label, any number for multi_label.
        site: name of the site; `ONE_SITE` until virtual sites are assigned.
        group: patient or lesion; all images of one group are in the same split.
        split: one of `SPLITS`; None if not yet assigned.
        attributes: (name, value) pairs of the subgroups to report on, e.g. ("sex", "female").
    """

    image: str
    labels: tuple[int, ...]
    site: str
    group: str
    split: str | None
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Catalog:
    """All records of a source, the classes that the labels index, and the image store."""

    records: tuple[ImageRecord, ...]
    classes: tuple[str, ...]
    task: str
    store: ImageStore
