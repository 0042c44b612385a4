"""The last step of every source: it returns the catalog, or reports all problems together."""

from collections.abc import Sequence

from ept_fed.data.decoding.image_store import ImageStore
from ept_fed.data.records.records import Catalog, ImageRecord
from ept_fed.data.splits.splits import find_straddling_groups
from ept_fed.errors import InputRefusedError, Problem

__all__ = ["complete_catalog", "describe_straddling"]

_SHOWN = 5


def complete_catalog(
    records: Sequence[ImageRecord],
    classes: tuple[str, ...],
    task: str,
    store: ImageStore | None,
    problems: Sequence[Problem],
) -> Catalog:
    """Return the catalog if there are no problems.

    A catalog is not refused only because of straddling groups or absent images. The doctor reports both; a run refuses
    straddling groups, and drops as many absent images as `max_unreadable` allows. If the catalog is refused for another
    reason, they are reported too.

    Raises:
        InputRefusedError: with the problems, the straddling groups and the absent images.
    """
    if not problems and store is not None:
        return Catalog(tuple(records), classes, task, store)
    absent = [] if store is None else store.find_missing([record.image for record in records if record.image])
    more = []
    if absent:
        fix = f"{len(absent)} listed image(s) are absent; restore them, or take them out of the list"
        more.append(Problem("data.images", absent[:_SHOWN], fix))
    raise InputRefusedError([*problems, *describe_straddling(records), *more])


def describe_straddling(records: Sequence[ImageRecord]) -> list[Problem]:
    """Return a problem if groups have images in more than one split."""
    straddling = find_straddling_groups(records)
    if not straddling:
        return []
    fix = f"{len(straddling)} group(s) have images in more than one split; give each group one split"
    return [Problem("data", straddling[:_SHOWN], fix)]
