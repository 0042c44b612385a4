"""What a broken rule is: named to everyone, explained to the site alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from ept_fed.protocol.messages import MessageRefusedError

__all__ = ["RuleBroken", "RulesBrokenError", "beyond"]


@dataclass(frozen=True)
class RuleBroken:
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


class RulesBrokenError(MessageRefusedError):
    """A message that the site's gate refuses. Its text, which travels, holds the rules' names and nothing of the site.

    Attributes:
        broken: all rules that it breaks, with values and fixes, for the site's log and ledger.
    """

    def __init__(self, broken: Sequence[RuleBroken]) -> None:
        self.broken = tuple(broken)
        super().__init__(f"the site's gate refuses it: {', '.join(self.rules)}")

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the rules, each once."""
        return tuple(dict.fromkeys(broken.rule for broken in self.broken))


def beyond(rule: str, value: float, ends: tuple[float, float]) -> list[RuleBroken]:
    """Return what a number outside [least, most] breaks (NaN is outside)."""
    if ends[0] <= value <= ends[1]:
        return []
    return [RuleBroken(rule, f"{value:g}", f"the policy allows {ends[0]:g} to {ends[1]:g}; change {rule} to allow it")]
