import itertools

from hypothesis import given
from hypothesis import strategies as st

from ept_fed.evaluation.subgroups import MIN_CASES, UNSTATED, band_values, choose_hidden


def test_ages_are_grouped_by_decade_and_words_are_kept() -> None:
    ages = [str(float(age)) for age in range(15, 90, 5)]
    assert set(band_values(ages)) == {f"{ten}–{ten + 9}" for ten in range(10, 90, 10)}
    assert band_values(["male", "", "female"]) == ("male", UNSTATED, "female")
    assert band_values(["1.5", "3", "1.5"]) == ("1.5", "3", "1.5")


def test_a_column_with_one_word_among_numbers_is_unchanged() -> None:
    values = [*map(str, range(20)), "unknown"]
    assert band_values(values) == tuple(values)


def test_bands_of_small_numbers_state_their_limits() -> None:
    bands = band_values([str(tenth / 10) for tenth in range(12)])
    assert bands[0] == "0 to below 0.1"
    assert bands[3] == "0.3 to below 0.4"
    assert set(band_values(["nan", *map(str, range(20))])) >= {"nan"}


@given(st.lists(st.integers(-5000, 5000), min_size=10, max_size=60, unique=True), st.sampled_from([1, 10, 1000]))
def test_bands_are_few_and_keep_the_order_of_the_numbers(numbers: list[int], parts: int) -> None:
    bands = band_values([repr(number / parts) for number in sorted(numbers)])
    changes = sum(a != b for a, b in itertools.pairwise(bands))
    assert len(set(bands)) == changes + 1 <= 17


def test_a_single_small_cell_hides_the_next_smallest_too() -> None:
    assert choose_hidden({"male": 40, "female": 30, "unknown": 3}) == {"unknown", "female"}
    assert choose_hidden({"male": 40, "female": 30}) == frozenset()
    assert choose_hidden({"a": 40, "b": 6, "c": 5}) == {"b", "c"}
    assert choose_hidden({"a": 40, "b": 2, "c": 1}) == {"a", "b", "c"}
    assert choose_hidden({"a": 0, "b": 20}) == frozenset()


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 60), max_size=8))
def test_hidden_counts_cannot_be_derived_from_the_total(cases: dict[str, int]) -> None:
    hidden = choose_hidden(cases)
    assert all(name in hidden for name, count in cases.items() if 0 < count < MIN_CASES)
    filled = [name for name, count in cases.items() if count]
    if hidden and len(hidden) < len(filled):
        assert len(hidden) > 1
        assert sum(cases[name] for name in hidden) >= MIN_CASES
