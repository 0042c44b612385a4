"""Numeric options of strategies and methods: default, range and meaning."""

from collections.abc import Mapping
from dataclasses import dataclass

from ept_fed.errors import Problem

__all__ = ["Option", "check_options", "fill_options"]


@dataclass(frozen=True)
class Option:
    """A numeric option of a strategy or a method, with default and inclusive range; only integers if `whole`."""

    default: float
    low: float
    high: float
    meaning: str
    whole: bool = False

    def allows(self, value: float) -> bool:
        """Return whether the value is in range (NaN is not)."""
        return self.low <= value <= self.high and (not self.whole or float(value).is_integer())


def fill_options(options: Mapping[str, Option], given: Mapping[str, float]) -> dict[str, float]:
    """Return the value of every option; an option that is not given has its default."""
    return {name: given.get(name, option.default) for name, option in options.items()}


def check_options(setting: str, owner: str, options: Mapping[str, Option], given: Mapping[str, float]) -> list[Problem]:
    """Return a problem for every unknown option and every value out of range.

    Args:
        setting: path of the setting, e.g. "federation.options".
        owner: name of the strategy or method, for the message.
        options: the options of the owner.
        given: the options in the experiment.
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
