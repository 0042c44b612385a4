from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.data.partition import keep_sites, name_sites, partition_records
from ept_fed.data.records import ImageRecord
from ept_fed.partition_settings import IIDPartition
from ept_fed.problems import InputRefusedError

MakeRecords = Callable[..., list[ImageRecord]]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2)), min_size=4, max_size=60), st.integers(1, 4))
def test_partition_keeps_groups_whole_and_every_image(rows: list[tuple[int, int]], sites: int) -> None:
    records = [ImageRecord(f"i{n}", (label,), "all", f"g{group}", None) for n, (group, label) in enumerate(rows)]
    if len({record.group for record in records}) < sites:
        return
    dealt = partition_records(records, IIDPartition(sites=sites), 3)
    assert [record.image for record in dealt] == [record.image for record in records]
    assert len({(record.group, record.site) for record in dealt}) == len({record.group for record in records})
    assert {record.site for record in dealt} == set(name_sites(sites))
    backwards = partition_records(records[::-1], IIDPartition(sites=sites), 3)
    assert backwards[::-1] == dealt


def test_every_site_gets_the_same_mix(make_records: MakeRecords) -> None:
    records = make_records([(f"g{n}", n % 3, "all", ("train", "test")[n % 2]) for n in range(120)])
    counts = Counter(
        (record.site, record.split, record.labels) for record in partition_records(records, IIDPartition(sites=4), 0)
    )
    assert set(counts.values()) == {5}


def test_names_sort_as_numbers() -> None:
    assert name_sites(3) == ("site-1", "site-2", "site-3")
    assert list(name_sites(12)) == sorted(name_sites(12))


def test_more_sites_than_groups_is_refused(make_records: MakeRecords) -> None:
    with pytest.raises(InputRefusedError, match="at most 2"):
        partition_records(make_records([("g", 0, "all", None), ("h", 0, "all", None)]), IIDPartition(sites=3), 0)


def test_unknown_sites_are_all_named(make_records: MakeRecords) -> None:
    with pytest.raises(InputRefusedError) as caught:
        keep_sites(make_records([("g", 0, "x", None)]), ["x", "y", "z"])
    assert [problem.value for problem in caught.value.problems] == ["y", "z"]


def test_wanted_sites_are_kept(make_records: MakeRecords) -> None:
    records = make_records([("g", 0, "x", None), ("h", 0, "y", None)])
    assert keep_sites(records, None) == tuple(records)
    assert keep_sites(records, ["y"]) == (records[1],)
