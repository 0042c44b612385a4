"""Policy violations: the server receives only the rules' names; values and fixes stay at the site."""

from collections.abc import Sequence
from dataclasses import dataclass

from ept_fed.protocol.messages import MessageRefusedError

__all__ = ["PolicyViolation", "PolicyViolationError", "beyond"]


@dataclass(frozen=True)
class PolicyViolation:
    """One reason why a message may not pass.

    Attributes:
        rule: a setting of policy.yaml, such as outgoing.head; or protocol.…, which no policy can change.
        value: the value in the message.
        fix: the change that would allow the message, or another remedy.
    """

    rule: str
    value: object
    fix: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.value}: {self.fix}"


class PolicyViolationError(MessageRefusedError):
    """The site's gate refuses a message; the text, which is sent, contains only the names of the rules.

    Attributes:
        violations: all policy violations, with values and fixes, for the site's log and ledger.
    """

    def __init__(self, violations: Sequence[PolicyViolation]) -> None:
        self.violations = tuple(violations)
        super().__init__(f"the site's gate refuses it: {', '.join(self.rules)}")

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the violated rules, each one once."""
        return tuple(dict.fromkeys(violations.rule for violations in self.violations))


def beyond(rule: str, value: float, ends: tuple[float, float]) -> list[PolicyViolation]:
    """Return the violation by a number outside [minimum, maximum] (NaN is outside)."""
    if ends[0] <= value <= ends[1]:
        return []
    return [
        PolicyViolation(rule, f"{value:g}", f"the policy allows {ends[0]:g} to {ends[1]:g}; change {rule} to allow it")
    ]
