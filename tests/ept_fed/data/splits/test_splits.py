import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.data.records.records import SPLITS, ImageRecord
from ept_fed.data.splits.splits import assign_splits, find_straddling_groups


@st.composite
def catalogs(draw: st.DrawFn) -> list[ImageRecord]:
    rows = draw(
        st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2), st.sampled_from("xyz")), min_size=1, max_size=40)
    )
    return [
        ImageRecord(f"i{number}", (label,), site, f"g{group}", None) for number, (group, label, site) in enumerate(rows)
    ]


def _split(records: list[ImageRecord], test: float = 0.2, validation: float = 0.1, seed: int = 0) -> dict[str, str]:
    assigned = assign_splits(records, test_fraction=test, validation_fraction=validation, seed=seed)
    assert [replace(record, split=None) for record in assigned] == [replace(record, split=None) for record in records]
    return {record.image: str(record.split) for record in assigned}


@given(catalogs(), st.floats(0, 0.6), st.floats(0, 0.39))
def test_groups_never_straddle_a_split(records: list[ImageRecord], test: float, validation: float) -> None:
    assigned = assign_splits(records, test_fraction=test, validation_fraction=validation, seed=1)
    assert {record.split for record in assigned} <= set(SPLITS)
    assert find_straddling_groups(assigned) == []


@given(catalogs(), st.randoms(use_true_random=False))
def test_splits_do_not_depend_on_row_order(records: list[ImageRecord], shuffler: random.Random) -> None:
    shuffled = list(records)
    shuffler.shuffle(shuffled)
    assert _split(records) == _split(shuffled)


@given(catalogs(), st.floats(0.01, 0.6), st.floats(0, 0.39))
def test_strata_follow_the_rounding_rule(records: list[ImageRecord], test: float, validation: float) -> None:
    splits = _split(records, test, validation)
    strata: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    seen: set[str] = set()
    for record in sorted(records, key=lambda record: (record.site, record.image)):
        if record.group not in seen:
            seen.add(record.group)
            strata[record.site, record.labels[0]][record.group] = splits[record.image]
    for groups in strata.values():
        counts, n = Counter(groups.values()), len(groups)
        assert counts["train"] >= 1
        assert counts["test"] >= (n >= 3)
        assert abs(counts["test"] - n * test) <= 1


@given(catalogs())
def test_zero_fractions_train_on_everything(records: list[ImageRecord]) -> None:
    assert set(_split(records, 0.0, 0.0).values()) == {"train"}


def test_another_seed_gives_other_splits(make_records: Callable[..., list[ImageRecord]]) -> None:
    records = make_records([(f"g{number}", 0, "x", None) for number in range(50)])
    assert _split(records, seed=0) != _split(records, seed=1)


def test_another_sites_groups_change_nothing(make_records: Callable[..., list[ImageRecord]]) -> None:
    records = make_records([(f"g{number}", 0, "xy"[number % 2], None) for number in range(60)])
    alone = [record for record in records if record.site == "y"]
    together = _split(records)
    assert _split(alone) == {record.image: together[record.image] for record in alone}


def test_given_splits_are_kept(make_records: Callable[..., list[ImageRecord]]) -> None:
    records = make_records([(f"g{number}", 0, "x", SPLITS[number % 3]) for number in range(30)])
    assert assign_splits(records, test_fraction=0.5, validation_fraction=0.3, seed=0) == tuple(records)


def test_missing_validation_is_taken_from_train_only(make_records: Callable[..., list[ImageRecord]]) -> None:
    rows = [(f"g{number}", number % 2, "x", "test" if number < 20 else "train") for number in range(60)]
    records = make_records(rows)
    splits = _split(records, test=0.5, validation=0.25)
    assert all(splits[record.image] == "test" for record in records if record.split == "test")
    assert Counter(splits[record.image] for record in records if record.split == "train") == {
        "train": 30,
        "validation": 10,
    }


def test_unassigned_images_join_their_group(make_records: Callable[..., list[ImageRecord]]) -> None:
    rows = [("g", 0, "x", "test"), ("g", 0, "x", None), ("h", 0, "x", "validation")]
    assert list(_split(make_records(rows)).values()) == ["test", "test", "validation"]


def test_a_group_in_two_given_splits_is_refused(make_records: Callable[..., list[ImageRecord]]) -> None:
    with pytest.raises(ValueError, match="group 'g'"):
        _split(make_records([("g", 0, "x", "test"), ("g", 0, "x", "train")]))
