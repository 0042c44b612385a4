"""The file of one cell's features before and after tuning, from which every number and figure can be made again.

analysis/<key>.safetensors holds tensors and a description, both checksummed. Features describe images, and the file
also contains a few of the images. It must therefore stay where the images are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ept_fed.evaluation.metrics import Array
from ept_fed.storage.checkpoint_file import DamagedCheckpointError, read_checksummed, write_checksummed

__all__ = ["MOMENTS", "FeatureRecord", "Moment", "ScalingExamples", "read_record", "write_record"]

Moment = Literal["before", "after"]
MOMENTS: tuple[Moment, ...] = ("before", "after")

_SCHEMA = 1


@dataclass(frozen=True)
class ScalingExamples:
    """Effect of the prompts of Embedded Prompt Tuning on the patches of k images.

    Attributes:
        images: (k, H, W, 3) uint8, as the model receives them.
        labels: (k,) class indices.
        factors: (k, rows, columns) float32 at each moment, see `ept_fed.models.scaling_map`.
    """

    images: Array
    labels: Array
    factors: Mapping[Moment, Array]


@dataclass(frozen=True)
class FeatureRecord:
    """The data for the analysis of one cell: n images of all its sites.

    Attributes:
        key: of the cell.
        setting: of the cell.
        classes: names of the classes.
        sites: names of the sites.
        numbers: the tuned model's metrics at each site, as in the cell's line of cells.jsonl.
        labels: (n,) class indices.
        places: (n,) indices of `sites`.
        features: (n, D) float32 at each moment.
        drawn: (m,) indices of the images on the maps.
        maps: (m, 2) float32 t-SNE map at each moment, None if there is none.
        scaling: None for methods that scale nothing.
    """

    key: str
    setting: str
    classes: tuple[str, ...]
    sites: tuple[str, ...]
    numbers: Mapping[str, Any]
    labels: Array
    places: Array
    features: Mapping[Moment, Array]
    drawn: Array
    maps: Mapping[Moment, Array | None]
    scaling: ScalingExamples | None


def write_record(path: Path, record: FeatureRecord) -> None:
    """Write a record atomically."""
    about = {
        "schema": _SCHEMA,
        "key": record.key,
        "setting": record.setting,
        "classes": list(record.classes),
        "sites": list(record.sites),
        "numbers": record.numbers,
    }
    write_checksummed(path, dict(_list_tensors(record)), about)


def read_record(path: Path) -> FeatureRecord:
    """Read a record.

    Raises:
        DamagedCheckpointError: if the file is damaged, altered, or of another schema.
    """
    tensors, about = read_checksummed(path)
    if about.get("schema") != _SCHEMA:
        raise DamagedCheckpointError(f"{path} has schema {about.get('schema')}; this version reads {_SCHEMA}")
    scaling = None
    if "scaling.images" in tensors:
        factors = {moment: tensors[f"scaling.{moment}"] for moment in MOMENTS}
        scaling = ScalingExamples(tensors["scaling.images"], tensors["scaling.labels"], factors)
    return FeatureRecord(
        key=about["key"],
        setting=about["setting"],
        classes=tuple(about["classes"]),
        sites=tuple(about["sites"]),
        numbers=about["numbers"],
        labels=tensors["labels"],
        places=tensors["places"],
        features={moment: tensors[f"features.{moment}"] for moment in MOMENTS},
        drawn=tensors["drawn"],
        maps={moment: tensors.get(f"map.{moment}") for moment in MOMENTS},
        scaling=scaling,
    )


def _list_tensors(record: FeatureRecord) -> Iterator[tuple[str, Array]]:
    yield "labels", record.labels
    yield "places", record.places
    yield "drawn", record.drawn
    for moment in MOMENTS:
        yield f"features.{moment}", record.features[moment]
        placed = record.maps[moment]
        if placed is not None:
            yield f"map.{moment}", placed
    if record.scaling is not None:
        yield "scaling.images", record.scaling.images
        yield "scaling.labels", record.scaling.labels
        for moment in MOMENTS:
            yield f"scaling.{moment}", record.scaling.factors[moment]
