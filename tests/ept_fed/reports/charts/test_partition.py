import io

import matplotlib as mpl
import pytest
from PIL import Image

from ept_fed.data.records.counts import CountRow, count_images, count_splits
from ept_fed.data.records.records import ImageRecord
from ept_fed.reports.charts.partition import draw_partition, tabulate


def rows(sites: int, classes: int, most: int = 10) -> list[CountRow]:
    """Return the counts of sites with 1, 2, … images of their classes, but no more than `most`."""
    records = [
        ImageRecord(f"{site}/{label}/{n}", (label,), f"site-{site:04d}", f"{site}/{label}", ("train", "test")[n % 2])
        for site in range(sites)
        for label in range(classes)
        for n in range(min(1 + label, most))
    ]
    return count_images(records, [f"a class with a long name {label}" for label in range(classes)])


def test_counts_add_up_over_splits() -> None:
    sites, classes, counts = tabulate(rows(3, 4))
    assert (len(sites), len(classes)) == (3, 4)
    assert counts.tolist() == [[1, 2, 3, 4]] * 3


def test_images_with_several_labels_or_none_count_once_per_split() -> None:
    records = [ImageRecord("a", (0, 1), "x", "p", "train"), ImageRecord("b", (), "x", "p", None)]
    splits = {row["split"]: (row["images"], row["groups"]) for row in count_splits(records)}
    assert splits == {"train": (1, 1), "validation": (0, 0), "test": (0, 0), "unassigned": (1, 1)}
    assert sum(int(row["images"]) for row in count_images(records, ("a", "b"))) == 2


@pytest.mark.parametrize(("sites", "classes"), [(1, 2), (4, 7), (1000, 10)])
def test_any_number_of_sites_fits_into_the_picture(sites: int, classes: int) -> None:
    before = dict(mpl.rcParams)
    with Image.open(io.BytesIO(draw_partition(rows(sites, classes, 1 if sites > 100 else 10)))) as picture:
        assert picture.format == "PNG"
        assert max(picture.size) < 2500
    assert dict(mpl.rcParams) == before


def test_equal_counts_give_equal_bytes() -> None:
    assert draw_partition(rows(3, 3)) == draw_partition(rows(3, 3))
