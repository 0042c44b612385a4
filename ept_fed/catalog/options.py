"""Numbers that a catalogue's entry takes: default, range and meaning; shared by strategies and methods."""

from collections.abc import Mapping
from dataclasses import dataclass

from ept_fed.errors import Problem

__all__ = ["Option", "check_options", "fill_options"]


@dataclass(frozen=True)
class Option:
    """A number that a strategy or a method takes: default and inclusive range; whole numbers only if `whole`."""

    default: float
    low: float
    high: float
    meaning: str
    whole: bool = False

    def allows(self, value: float) -> bool:
        """Tell whether the value is in range (NaN is not)."""
        return self.low <= value <= self.high and (not self.whole or float(value).is_integer())


def fill_options(options: Mapping[str, Option], given: Mapping[str, float]) -> dict[str, float]:
    """Return every option, with its default where none was given."""
    return {name: given.get(name, option.default) for name, option in options.items()}


def check_options(setting: str, owner: str, options: Mapping[str, Option], given: Mapping[str, float]) -> list[Problem]:
    """Return what is wrong with the given numbers: names that the owner lacks, values out of range.

    Args:
        setting: the settings' path, e.g. "federation.options".
        owner: the entry's name, for the message.
        options: what it takes.
        given: what the experiment gives.
    """
    found = []
    for name, value in given.items():
        option = options.get(name)
        if option is None:
            fix = f"{owner} has no such option; it has: {', '.join(options) or 'none'}"
            found.append(Problem(f"{setting}.{name}", value, fix))
        elif not option.allows(value):
            kind = "a whole number" if option.whole else "a number"
            fix = f"must be {kind} from {option.low:g} to {option.high:g}: {option.meaning}"
            found.append(Problem(f"{setting}.{name}", value, fix))
    return found
