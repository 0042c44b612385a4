"""Data: sources, splits by group, virtual sites, K-shot samples and cached batches.

    catalog (sources) -> virtual sites (partition) -> splits -> K-shot (fewshot) -> cache (cache, datasets)

Everything up to the cache is a pure function over `ImageRecord`s, seeded by values and independent of row
order. Only light names are exported here; `ept_fed.data.datasets` brings torch, and `ept_fed.data.transforms`
brings MONAI.
"""

from ept_fed.data.images import ImageStore, UnreadableImageError
from ept_fed.data.input_spec import InputSpec
from ept_fed.data.records import Catalog, ImageRecord

__all__ = ["Catalog", "ImageRecord", "ImageStore", "InputSpec", "UnreadableImageError"]
