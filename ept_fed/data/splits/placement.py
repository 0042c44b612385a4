"""From what a source lists to what each site has: virtual sites, then splits, then the sites that are wanted."""

from collections.abc import Sequence

from ept_fed.config.data import AnyDataSettings
from ept_fed.data.records.records import ImageRecord
from ept_fed.data.splits.partition import keep_sites, partition_records
from ept_fed.data.splits.splits import assign_splits

__all__ = ["place_records"]


def place_records(records: Sequence[ImageRecord], settings: AnyDataSettings, seed: int) -> tuple[ImageRecord, ...]:
    """Give every record a site and a split, and keep the records of `settings.sites`.

    Splits are assigned before sites are left out, so a machine that holds one site of a shared manifest draws what a
    simulation of all sites draws.

    Raises:
        InputRefusedError: for a partition that cannot be made, or unknown sites.
        ValueError: when a group comes in two splits; see `ept_fed.data.sources.registry.open_catalog`.
    """
    seed = settings.place_by(seed)
    placed = assign_splits(
        partition_records(records, settings.partition, seed),
        test_fraction=settings.test_fraction,
        validation_fraction=settings.validation_fraction,
        seed=seed,
    )
    return keep_sites(placed, settings.sites)
