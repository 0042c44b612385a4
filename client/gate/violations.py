"""What a broken rule is: named to everyone, explained to the site alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from ept_fed.protocol.messages import MessageRefusedError

__all__ = ["PolicyViolation", "PolicyViolationError", "beyond"]


@dataclass(frozen=True)
class PolicyViolation:
    """One reason why a message may not pass.

    Attributes:
        rule: a setting of policy.yaml, such as outgoing.head, or protocol.…, which no policy changes.
        value: what the message has, or asks for.
        fix: what the site could change, or what to do else.
    """

    rule: str
    value: object
    fix: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.value}: {self.fix}"


class PolicyViolationError(MessageRefusedError):
    """A message that the site's gate refuses. Its text, which travels, holds the rules' names and nothing of the site.

    Attributes:
        broken: all rules that it breaks, with values and fixes, for the site's log and ledger.
    """

    def __init__(self, violations: Sequence[PolicyViolation]) -> None:
        self.violations = tuple(violations)
        super().__init__(f"the site's gate refuses it: {', '.join(self.rules)}")

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the rules, each once."""
        return tuple(dict.fromkeys(violations.rule for violations in self.violations))


def beyond(rule: str, value: float, ends: tuple[float, float]) -> list[PolicyViolation]:
    """Return what a number outside [least, most] breaks (NaN is outside)."""
    if ends[0] <= value <= ends[1]:
        return []
    return [
        PolicyViolation(rule, f"{value:g}", f"the policy allows {ends[0]:g} to {ends[1]:g}; change {rule} to allow it")
    ]
