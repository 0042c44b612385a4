"""Errors that list all problems of an input together, each with its field, value and fix."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["InputRefusedError", "Problem", "UnavailableError"]


@dataclass(frozen=True)
class Problem:
    """One problem that a person has to correct before a command can start."""

    field: str
    value: object
    fix: str

    def __str__(self) -> str:
        shown = repr(self.value) if not isinstance(self.value, str) else f"'{self.value}'"
        return f"{self.field} = {shown}: {self.fix}"


class InputRefusedError(Exception):
    """An input is refused; carries all problems found. The command line prints them and exits with 2."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        if not problems:
            raise ValueError("InputRefusedError needs at least one problem")
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UnavailableError(RuntimeError):
    """A required process does not run or does not answer; the text names it."""
