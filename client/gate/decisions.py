"""The gate's decisions: each one is written to the ledger before it takes effect.

A refusal that is sent to the server contains only the names of the rules.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from typing import NoReturn

from client.gate.violations import PolicyViolation, PolicyViolationError
from client.ledger.ledger import Ledger, Record
from ept_fed.protocol.messages import clean_text

__all__ = ["Decisions"]

_log = logging.getLogger(__name__)

_LONGEST_REASON = 2000


class Decisions:
    """Writes the decisions made under one policy.

    A decision that cannot be written does not pass: every method raises OSError then.
    """

    def __init__(self, ledger: Ledger, policy_digest: str) -> None:
        """Take the open ledger, and the digest of the policy in force."""
        self._ledger, self._policy_digest = ledger, policy_digest

    def settle(self, record: Record, frame: bytes, violations: Sequence[PolicyViolation]) -> None:
        """Record a message as passed, or refuse it if it violates the policy; arguments and errors as for `refuse`."""
        if violations:
            self.refuse(record, frame, violations)
        self.append(record, frame)

    def refuse(self, record: Record, frame: bytes, violations: Sequence[PolicyViolation]) -> NoReturn:
        """Record a refusal, with values and fixes in ledger and log, and raise it.

        Args:
            record: description of the message; its decision is replaced.
            frame: bytes of the message; empty if no message was made.
            violations: all policy violations of the message.

        Raises:
            PolicyViolationError: always, with the names of the rules.
        """
        error = PolicyViolationError(violations)
        # A request and its proposal may violate a rule with the same value: it is reported once.
        reason = clean_text("; ".join(dict.fromkeys(str(rule) for rule in violations)), _LONGEST_REASON)
        _log.warning("refused %s (%s): %s", record.kind, record.direction, reason)
        rule = ", ".join(error.rules)
        self.append(dataclasses.replace(record, decision="refused", rule=rule, reason=reason), frame)
        raise error

    def append(self, record: Record, frame: bytes) -> None:
        """Write one entry with its frame's size and SHA-256."""
        sha256 = hashlib.sha256(frame).hexdigest() if frame else None
        whole = dataclasses.replace(record, bytes=len(frame), sha256=sha256, policy=self._policy_digest)
        self._ledger.append(whole)

    @property
    def ended(self) -> bool:
        """Whether the ledger accepts no more entries."""
        return self._ledger.closed

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()
