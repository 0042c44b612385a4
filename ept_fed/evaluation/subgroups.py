"""Subgroups of a site's test cases: bands for numbers, and the choice of cells that are too small to be shown.

These are pure functions of the values of one column, such as age, sex or scanner.
"""

import math
from collections.abc import Mapping, Sequence

__all__ = ["MIN_CASES", "UNSTATED", "band_values", "choose_hidden"]

MIN_CASES = 10
"""Minimum number of cases in a shown cell: with fewer, intervals are useless, and one patient could be recognised."""

UNSTATED = "not stated"

_MAX_CATEGORIES = 6


def band_values(values: Sequence[str]) -> tuple[str, ...]:
    """Return each image's cell: its value, the band that contains its number, or `UNSTATED` if the value is empty.

    A column has bands if all its values are numbers (or empty) and more than six of them are different. The width is a
    power of ten, 10^floor(log10(range / 1.5)). This gives 2 to 16 bands that do not depend on the start of the range.
    For example, ages with a range from 15 to 149 years have bands of ten years, the same at every site.
    """
    stated = sorted({value for value in values if value})
    numbers = {value: number for value in stated if (number := _number(value)) is not None}
    if len(numbers) < len(stated) or len(set(numbers.values())) <= _MAX_CATEGORIES:
        return tuple(value or UNSTATED for value in values)
    spread = max(numbers.values()) - min(numbers.values())
    width = 10.0 ** math.floor(math.log10(spread / 1.5))
    whole = width >= 1 and all(number == round(number) for number in numbers.values())
    # Rounded before floor: 0.3 / 0.1 is 2.9999999999999996, but 0.3 belongs to the band that starts at 0.3.
    places = {value: math.floor(round(number / width, 9)) for value, number in numbers.items()}
    names = {value: _name_band(place, width, whole=whole) for value, place in places.items()}
    return tuple(names.get(value, UNSTATED) for value in values)


def choose_hidden(cases: Mapping[str, int], minimum: int = MIN_CASES) -> frozenset[str]:
    """Return the cells to hide: those with 1 to `minimum` - 1 cases, and more cells so that these cannot be derived.

    The reader has the total over all cells, and can subtract the shown cells from it. This would reveal the count of a
    single hidden cell, or show that the hidden cells have fewer than `minimum` cases together. In both cases the
    smallest shown cell is hidden too, and so on (complementary suppression; Hundepool et al., Statistical Disclosure
    Control, 2012, chapter 4). Each column is protected separately, because there are no tables that cross several
    columns.

    Args:
        cases: cell -> number of cases.
        minimum: minimum number of cases in a shown cell.
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
