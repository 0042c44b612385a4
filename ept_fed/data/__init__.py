"""Data: sources, splits by group, virtual sites, K-shot samples and cached batches.

    sources (catalog of records) -> splits (virtual sites, splits, K-shot) -> datasets (cache, transforms, batches)

Everything up to the cache is a pure function over `ImageRecord`s, seeded by values and independent of row
order. Only light names are exported here; `ept_fed.data.datasets.prepare` brings torch, and
`ept_fed.data.datasets.transforms` brings MONAI.
"""

from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.data.decoding.image_store import ImageStore, UnreadableImageError
from ept_fed.data.records.records import Catalog, ImageRecord

__all__ = ["Catalog", "ImageRecord", "ImageStore", "InputSpec", "UnreadableImageError"]
