from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ept_fed.data.records.records import ImageRecord
from ept_fed.data.splits.few_shot import find_shortages, sample_shots

CLASSES = 3


@st.composite
def training_records(draw: st.DrawFn, max_labels: int = 1) -> list[ImageRecord]:
    label_sets = st.sets(st.integers(0, CLASSES - 1), min_size=max_labels == 1, max_size=max_labels)
    rows = draw(st.lists(st.tuples(st.integers(0, 9), label_sets), max_size=40))
    return [
        ImageRecord(f"i{n}", tuple(sorted(labels)), "x", f"g{group}", "train") for n, (group, labels) in enumerate(rows)
    ]


def _draw(records: list[ImageRecord], shots: int, seed: int = 0) -> set[str]:
    return {record.image for record in sample_shots(records, shots=shots, num_classes=CLASSES, seed=seed).records}


@given(training_records(), st.integers(1, 8))
def test_single_label_takes_exactly_k_or_all(records: list[ImageRecord], shots: int) -> None:
    sample = sample_shots(records, shots=shots, num_classes=CLASSES, seed=0)
    available = Counter(record.labels[0] for record in records)
    assert sample.available == tuple(available[label] for label in range(CLASSES))
    assert sample.taken == tuple(min(shots, have) for have in sample.available)
    assert len(sample.records) == sum(sample.taken)


@given(training_records(), st.integers(1, 8))
def test_samples_are_nested(records: list[ImageRecord], shots: int) -> None:
    assert _draw(records, shots) <= _draw(records, shots + 1)


@given(training_records(), st.integers(1, 8))
def test_no_patient_gives_a_second_image_before_all_gave_one(records: list[ImageRecord], shots: int) -> None:
    drawn = sample_shots(records, shots=shots, num_classes=CLASSES, seed=0).records
    for label in range(CLASSES):
        given_by = Counter(record.group for record in drawn if label in record.labels)
        held_by = Counter(record.group for record in records if label in record.labels)
        most = max(given_by.values(), default=0)
        assert all(given_by[group] >= min(held, most - 1) for group, held in held_by.items())


@given(training_records(max_labels=3), st.integers(1, 8), st.integers(0, 3))
def test_samples_do_not_depend_on_row_order(records: list[ImageRecord], shots: int, seed: int) -> None:
    assert _draw(records, shots, seed) == _draw(records[::-1], shots, seed)


@given(training_records(max_labels=3), st.integers(1, 8))
def test_multi_label_covers_every_class(records: list[ImageRecord], shots: int) -> None:
    sample = sample_shots(records, shots=shots, num_classes=CLASSES, seed=0)
    assert all(min(shots, have) <= taken <= have for have, taken in zip(sample.available, sample.taken, strict=True))
    assert all(record.labels for record in sample.records)
    assert len(sample.records) <= shots * CLASSES


def test_rarest_class_draws_first_so_shared_images_count() -> None:
    both = [ImageRecord(f"both-{n}", (0, 1), "x", f"b{n}", "train") for n in range(2)]
    common = [ImageRecord(f"common-{n}", (0,), "x", f"c{n}", "train") for n in range(30)]
    assert _draw(both + common, 2) == {"both-0", "both-1"}


def test_another_seed_draws_other_images() -> None:
    records = [ImageRecord(f"i{n}", (0,), "x", f"g{n}", "train") for n in range(60)]
    assert _draw(records, 5, seed=0) != _draw(records, 5, seed=1)


def test_shortages_name_scarce_and_absent_classes() -> None:
    records = [ImageRecord(f"i{n}", (0 if n < 5 else 1,), "x", f"g{n}", "train") for n in range(7)]
    sample = sample_shots(records, shots=5, num_classes=CLASSES, seed=0)
    assert find_shortages(sample, 5) == {1: 2, 2: 0}
