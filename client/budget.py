"""The site's privacy budget: what every private round of every run has cost, in one file that only grows.

`state/budget.jsonl` holds a line of JSON per round, written to the disk before the round begins, so before anything of
it can leave: a round that then fails has cost its share all the same. Each line holds the hash of the line before, and
`budget.tip` the number and hash of the last one, so that an altered, lost or reordered line, a torn end and a file that
was cut or removed are found. What is not whole is not spent from: the worker does not start until somebody at the
site has looked at it.

ε counts one image of the site's training set, whatever run it was used in; runs on other images are added all the same,
so the sum is an upper bound. Neither ε nor what is left of it leaves the site; `read_budget` is for its own report.

Not covered: whoever may write the site's state can begin a new file, or restore an old one with its tip.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from client.round_cost import Mechanism, RoundCost
from ept_fed.artefacts import write_text
from ept_fed.privacy.accountant import GaussianSteps, spent_epsilon
from ept_fed.settings import Count, Positive, Settings

__all__ = ["BUDGET_FILE", "BudgetBrokenError", "BudgetLedger", "Charged", "OverspentError", "read_budget"]

BUDGET_FILE = "budget.jsonl"
_FIRST = "0" * 64

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Delta = Annotated[float, Field(gt=0.0, lt=1.0)]


class BudgetBrokenError(Exception):
    """A ledger of the budget that is not whole; nothing is spent from it."""


class OverspentError(Exception):
    """A round that would cost more than is left."""


class Charged(Settings):
    """One private round: a line of the ledger.

    Attributes:
        schema_version: of this format, spelled `schema`.
        sequence: 1, 2, 3, …
        time: UTC, by the site's clock.
        run: the run.
        round: its round; it may occur again, as a round that is trained again costs again.
        mechanism, clip: see `RoundCost`.
        noise_multiplier, sampling_rate, steps: see `GaussianSteps`.
        delta: at which `epsilon` holds.
        epsilon: of all lines up to this one together.
        previous: SHA-256 of the line before; zeros in the first.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_version: Literal[1] = Field(1, alias="schema")
    sequence: Count
    time: str
    run: str
    round: Count
    mechanism: Mechanism
    noise_multiplier: Positive
    sampling_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    steps: Count
    clip: Positive
    delta: Delta
    epsilon: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    previous: Digest

    @property
    def spending(self) -> GaussianSteps:
        """What the accountant counts."""
        return GaussianSteps(self.noise_multiplier, self.sampling_rate, self.steps)


class BudgetLedger:
    """The open ledger of one site's budget; one process writes at a time, which the gate's own ledger sees to.

    Attributes:
        path: of the lines.
        charged: every round so far, oldest first.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Read a ledger; a file that is not there is an empty one, if its tip is not there either.

        Raises:
            BudgetBrokenError: if it is not whole.
            OSError: if it cannot be read.
        """
        self.path, self._clock = path, clock
        self.charged, self._last = _read(path)
        self._size = _size(path)

    def charge(self, run: str, round_number: int, cost: RoundCost, *, delta: float, epsilon: float | None) -> Charged:
        """Write down what a round is about to cost, on the disk when this returns.

        Args:
            run: the run.
            round_number: its round.
            cost: what it will cost.
            delta: δ of the budget.
            epsilon: ε of the budget, which all rounds together must not exceed; None sets no bound.

        Raises:
            OverspentError: if the round would, or without a budget is trained a second time; nothing is written.
            BudgetBrokenError: if the file is not as this process left it.
            OSError: if it cannot be written, and so must not happen.
        """
        if _size(self.path) != self._size:
            raise BudgetBrokenError(f"{self.path.name} was changed, or an entry could not be written whole")
        if epsilon is None and any((line.run, line.round) == (run, round_number) for line in self.charged):
            raise OverspentError(
                f"round {round_number} was trained with noise before, and no budget bounds repetitions"
            )
        spending = cost.spending
        total = spent_epsilon([*(line.spending for line in self.charged), spending], delta)
        if epsilon is not None and not total <= epsilon:
            spent = spent_epsilon([line.spending for line in self.charged], delta)
            raise OverspentError(f"{spent:.4g} is spent, and {total:.4g} would be; the budget is {epsilon:g}")
        line = Charged(
            sequence=len(self.charged) + 1,
            time=self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            run=run,
            round=round_number,
            mechanism=cost.mechanism,
            noise_multiplier=spending.noise_multiplier,
            sampling_rate=spending.sampling_rate,
            steps=spending.steps,
            clip=cost.clip,
            delta=delta,
            epsilon=total,
            previous=self._last,
        )
        content = line.model_dump_json(by_alias=True).encode()
        _append(self.path, content + b"\n")
        self._size += len(content) + 1
        self.charged.append(line)
        self._last = hashlib.sha256(content).hexdigest()
        _write_tip(self.path, line.sequence, self._last)
        return line


def read_budget(path: Path) -> tuple[Charged, ...]:
    """Return every private round of a site, oldest first; the last one's `epsilon` is what is spent. For its report.

    Raises:
        BudgetBrokenError: if the ledger is not whole.
        OSError: if it cannot be read.
    """
    return tuple(_read(path)[0])


def _read(path: Path) -> tuple[list[Charged], str]:
    """Return the lines of a ledger and the hash of the last."""
    tip = _read_tip(path)
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        raise BudgetBrokenError(f"{path.name} ends in the middle of a line")
    lines, last = _parse(path, content.splitlines())
    sequence, hashed = tip
    # The tip is written after its line, so an interruption may leave it one line behind.
    hashes = [_FIRST, *(line.previous for line in lines[1:]), last] if lines else [_FIRST]
    if not max(0, len(lines) - 1) <= sequence <= len(lines) or hashes[sequence] != hashed:
        raise BudgetBrokenError(f"{path.name} has {len(lines)} lines, and {_tip(path).name} says {sequence}")
    return lines, last


def _parse(path: Path, contents: Iterable[bytes]) -> tuple[list[Charged], str]:
    lines: list[Charged] = []
    last = _FIRST
    for number, content in enumerate(contents, 1):
        try:
            line = Charged.model_validate_json(content)
        except ValidationError as error:
            raise BudgetBrokenError(f"line {number} of {path.name} is not one of a budget") from error
        if line.sequence != number or line.previous != last:
            raise BudgetBrokenError(f"line {number} of {path.name} does not follow the one before")
        lines.append(line)
        last = hashlib.sha256(content).hexdigest()
    return lines, last


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    size = os.fstat(handle).st_size
    try:
        written = os.write(handle, content)
        if written != len(content):
            raise OSError(errno.ENOSPC, f"only {written} of {len(content)} bytes were written", path.name)
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, size)
        raise
    finally:
        os.close(handle)


def _tip(path: Path) -> Path:
    return path.with_suffix(".tip")


def _write_tip(path: Path, sequence: int, hashed: str) -> None:
    write_text(_tip(path), json.dumps({"schema": 1, "sequence": sequence, "hash": hashed}) + "\n")


def _read_tip(path: Path) -> tuple[int, str]:
    tip = _tip(path)
    if not tip.exists():
        return 0, _FIRST
    try:
        found = json.loads(tip.read_bytes())
        if set(found) != {"schema", "sequence", "hash"} or found["schema"] != 1 or type(found["sequence"]) is not int:
            raise ValueError
        return found["sequence"], str(found["hash"])
    except (ValueError, TypeError, KeyError) as error:
        raise BudgetBrokenError(f"{tip.name} is not the tip of a budget") from error
