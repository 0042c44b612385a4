"""Assignment of whole groups to the training, validation and test splits."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ept_fed.data.records.records import ImageRecord
from ept_fed.seeds import derive_seed

__all__ = ["assign_splits", "find_straddling_groups"]


def assign_splits(
    records: Sequence[ImageRecord], *, test_fraction: float, validation_fraction: float, seed: int
) -> tuple[ImageRecord, ...]:
    """Assign a split to every record that has none; the images of one group get the same split, at all sites.

    Groups are stratified by site and first label of their first record (first by site, then by image name). Inside a
    stratum they are ranked by a hash of seed and group, so the result does not depend on the order of the records or on
    the groups of other strata. Of n groups,

        test       = round(n · test_fraction), at least 1 when n ≥ 3 and test_fraction > 0, at most n - 1
        validation = round(n · validation_fraction), at most n - 1 - test
        train      = the rest, so at least 1

    with halves rounded up. A record whose group already has a split gets that split. If the records have splits but no
    validation split, the test images are kept, and validation groups are taken from the training groups.

    Args:
        records: records of all sites.
        test_fraction: share of the groups in [0, 1).
        validation_fraction: share of the groups in [0, 1).
        seed: the run's seed.

    Returns:
        The records in the given order, each with a split.

    Raises:
        ValueError: if a group is already in two splits.
    """
    straddling = find_straddling_groups(records)
    if straddling:
        raise ValueError(f"group '{straddling[0]}' is in two splits already")
    preset = {record.group: record.split for record in records if record.split is not None}
    carve_validation = "train" in preset.values() and "validation" not in preset.values()

    firsts: dict[str, ImageRecord] = {}
    for record in sorted(records, key=lambda record: (record.site, record.image)):
        firsts.setdefault(record.group, record)
    fresh: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    training: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for group, first in firsts.items():
        stratum = (first.site, first.labels[0] if first.labels else -1)
        if group not in preset:
            fresh[stratum].append(group)
        elif carve_validation and preset[group] == "train":
            training[stratum].append(group)

    assigned = dict(preset)
    for groups in fresh.values():
        assigned |= _split_groups(groups, test_fraction, validation_fraction, seed)
    for groups in training.values():
        assigned |= _split_groups(groups, 0.0, validation_fraction, seed)
    return tuple(replace(record, split=assigned[record.group]) for record in records)


def find_straddling_groups(records: Sequence[ImageRecord]) -> list[str]:
    """Return the sorted groups whose records have more than one split."""
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.split is not None:
            splits[record.group].add(record.split)
    return sorted(group for group, named in splits.items() if len(named) > 1)


def _split_groups(groups: list[str], test_fraction: float, validation_fraction: float, seed: int) -> dict[str, str]:
    ranked = sorted(groups, key=lambda group: (derive_seed(seed, "split", group), group))
    n = len(ranked)
    at_least = 1 if n >= 3 and test_fraction > 0 else 0
    test = min(max(_round_half_up(n * test_fraction), at_least), n - 1)
    validation = min(_round_half_up(n * validation_fraction), n - 1 - test)
    splits = ["test"] * test + ["validation"] * validation + ["train"] * (n - test - validation)
    return dict(zip(ranked, splits, strict=True))


def _round_half_up(value: float) -> int:
    return int(value + 0.5)
