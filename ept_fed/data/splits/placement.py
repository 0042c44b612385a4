"""Placement of a source's records: first virtual sites, then splits, then the selection of the wanted sites."""

from collections.abc import Sequence

from ept_fed.config.data import AnyDataSettings
from ept_fed.data.records.records import ImageRecord
from ept_fed.data.splits.partition import keep_sites, partition_records
from ept_fed.data.splits.splits import assign_splits

__all__ = ["place_records"]


def place_records(records: Sequence[ImageRecord], settings: AnyDataSettings, seed: int) -> tuple[ImageRecord, ...]:
    """Give every record a site and a split, and keep the records of `settings.sites`.

    Splits are assigned before sites are left out. So a machine with one site of a shared manifest draws the same splits
    as a simulation of all sites.

    Raises:
        InputRefusedError: for an impossible partition or unknown sites.
        ValueError: if a group is in two splits; see `ept_fed.data.sources.registry.open_catalog`.
    """
    seed = settings.place_by(seed)
    placed = assign_splits(
        partition_records(records, settings.partition, seed),
        test_fraction=settings.test_fraction,
        validation_fraction=settings.validation_fraction,
        seed=seed,
    )
    return keep_sites(placed, settings.sites)
