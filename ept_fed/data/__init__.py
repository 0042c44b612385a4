"""Data: sources, splits by group, virtual sites, K-shot samples and cached batches.

    sources (catalog of records) -> splits (virtual sites, splits, K-shot) -> datasets (cache, transforms, batches)

Everything up to the cache is a pure function over `ImageRecord`s, with explicit seeds and independent of the row
order. This package exports only names without heavy imports; `ept_fed.data.datasets.prepare` imports torch, and
`ept_fed.data.datasets.transforms` imports MONAI.
"""

from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.data.decoding.image_store import ImageStore, UnreadableImageError
from ept_fed.data.records.records import Catalog, ImageRecord

__all__ = ["Catalog", "ImageRecord", "ImageStore", "InputSpec", "UnreadableImageError"]
