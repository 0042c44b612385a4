"""Everything wrong with an input at once: the field, the value and the fix."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["InputRefusedError", "Problem", "UnavailableError"]


@dataclass(frozen=True)
class Problem:
    """One thing a person has to change before the work can start."""

    field: str
    value: object
    fix: str

    def __str__(self) -> str:
        shown = repr(self.value) if not isinstance(self.value, str) else f"'{self.value}'"
        return f"{self.field} = {shown}: {self.fix}"


class InputRefusedError(Exception):
    """Raised once with all problems found; the command line prints them and exits with 2."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        if not problems:
            raise ValueError("InputRefusedError needs at least one problem")
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UnavailableError(RuntimeError):
    """Something that has to run for this does not, or does not answer; the text says what."""
