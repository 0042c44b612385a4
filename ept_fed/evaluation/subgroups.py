"""Subgroups of a site's test cases: bands for numbers, and which cells are too small to be shown.

Pure functions over the values of one column, such as age, sex or scanner.
"""

import math
from collections.abc import Mapping, Sequence

__all__ = ["MIN_CASES", "UNSTATED", "band_values", "choose_hidden"]

MIN_CASES = 10
"""A cell with fewer cases is hidden: its interval would say nothing, and its numbers could be one patient's."""

UNSTATED = "not stated"

_MAX_CATEGORIES = 6


def band_values(values: Sequence[str]) -> tuple[str, ...]:
    """Return each image's cell: its value, the band that its number falls into, or `UNSTATED` where it is empty.

    A column is banded if all that is stated are numbers, of more than six different values. The width is a power of
    ten, 10^floor(log10(range / 1.5)), which gives 2 to 16 bands that do not depend on where the range starts: ages that
    span 15 to 149 years come in decades, at every site the same.
    """
    stated = sorted({value for value in values if value})
    numbers = {value: number for value in stated if (number := _number(value)) is not None}
    if len(numbers) < len(stated) or len(set(numbers.values())) <= _MAX_CATEGORIES:
        return tuple(value or UNSTATED for value in values)
    spread = max(numbers.values()) - min(numbers.values())
    width = 10.0 ** math.floor(math.log10(spread / 1.5))
    whole = width >= 1 and all(number == round(number) for number in numbers.values())
    # Rounded first: 0.3 / 0.1 is 2.9999999999999996, and 0.3 belongs into the band that starts there.
    places = {value: math.floor(round(number / width, 9)) for value, number in numbers.items()}
    names = {value: _name_band(place, width, whole=whole) for value, place in places.items()}
    return tuple(names.get(value, UNSTATED) for value in values)


def choose_hidden(cases: Mapping[str, int], minimum: int = MIN_CASES) -> frozenset[str]:
    """Return the cells to hide: those with 1 to `fewest` - 1 cases, and as many more as keep them from being derived.

    The total over all cells is known to the reader. So if what is hidden adds up to fewer than `fewest` cases, or is a
    single cell, it follows by subtraction; then the smallest cell shown is hidden too, and so on (complementary
    suppression; Hundepool et al., Statistical Disclosure Control, 2012, chapter 4). One column is protected at a time:
    tables of several columns crossed are not made anywhere.

    Args:
        cases: cell -> number of cases.
        fewest: the least that is shown.
    """
    order = sorted((count, name) for name, count in cases.items() if count)
    hidden = [(count, name) for count, name in order if count < minimum]
    if hidden:
        for cell in order[len(hidden) :]:
            if len(hidden) > 1 and sum(count for count, _ in hidden) >= minimum:
                break
            hidden.append(cell)
    return frozenset(name for _, name in hidden)


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _name_band(place: int, width: float, *, whole: bool) -> str:
    low, high = place * width, (place + 1) * width
    if whole and width > 1:
        return f"{low:g}–{high - 1:g}"
    return f"{low:g}" if whole else f"{low:g} to below {high:g}"
