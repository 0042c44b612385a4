"""The site's privacy budget: what every private round of every run has cost, in one file that only grows.

`state/budget.jsonl` holds a line of JSON per round, and `budget.tip` the last line alone. The tip is written first, and
both are on the disk before the round begins, so before anything of it can leave: a round that then fails has cost its
share all the same. Where an interruption tore the last line, or kept it from being written, the tip holds it whole:
the round counts as spent, at what it cost. Each line holds the hash of the line before, so that an altered, lost or
reordered line and a file that was cut or removed are found. What is not whole is not spent from: the worker does not
start until somebody at the site has looked at it.

ε counts one image of the site's training set, whatever run it was used in; runs on other images are added all the same,
so the sum is an upper bound. Neither ε nor what is left of it leaves the site; `read_budget` is for its own report.

The gate notes each line's hash in its signed ledger, so that a file that was begun anew, or is of another day, is
missed as long as that ledger is there.
"""

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from client.ledger.crash_recovery import is_torn, split_lines
from client.site.privacy_cost import Mechanism, RoundCost
from ept_fed.config.base import Count, Delta, Digest, Positive, Settings
from ept_fed.privacy.dp.accountant import GaussianSteps, spent_epsilon
from ept_fed.storage.files import sync_folder, write_bytes

__all__ = [
    "BUDGET",
    "BUDGET_FILE",
    "UNSPENT",
    "BudgetBrokenError",
    "BudgetLedger",
    "Charged",
    "OverspentError",
    "read_budget",
]

BUDGET_FILE = "budget.jsonl"
BUDGET = "budget"  # in the `about` of a ledger's entry: the end that the budget then had
_FIRST = "0" * 64
UNSPENT = f"0:{_FIRST}"  # the end of a budget without lines


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
        """Read a ledger, and change nothing; a file that is not there is an empty one, if its tip is not there either.

        Raises:
            BudgetBrokenError: if it is not whole.
            OSError: if it cannot be read.
        """
        self.path, self._clock = path, clock
        found = _read(path)
        self.charged, self._last, self._owed, self._whole = found.lines, found.last, found.owed, found.whole
        self._size = _size(path)

    @property
    def owed(self) -> Charged | None:
        """The last round, if an interruption tore its line or kept it from being written; it counts as spent."""
        return self.charged[-1] if self._owed else None

    @property
    def end(self) -> str:
        """Number and hash of the last line, for whoever is to miss it: "12:5f1c…"; "0:000…" before the first."""
        return f"{len(self.charged)}:{self._last}"

    def holds(self, end: str) -> bool:
        """Tell whether a line that was once the last is still there."""
        hashes = [line.previous for line in self.charged] + [self._last]
        number, _, last = end.partition(":")
        return number.isdigit() and int(number) < len(hashes) and hashes[int(number)] == last

    def complete(self) -> None:
        """Write the line that is owed, if one is.

        Raises:
            OSError: if it cannot be written.
        """
        if not self._owed:
            return
        try:
            _append(self.path, self._whole, self._owed)
        finally:
            self._size = _size(self.path)
        self._whole, self._owed = self._size, b""

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
            raise BudgetBrokenError(f"{self.path.name} was changed by somebody else")
        self.complete()
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
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(_tip(self.path), content + b"\n", mode=0o600)
        sync_folder(self.path.parent)
        # From here on the round has cost its share, whatever becomes of the line.
        self.charged.append(line)
        self._last, self._owed = hashlib.sha256(content).hexdigest(), content + b"\n"
        self.complete()
        return line


def read_budget(path: Path) -> tuple[Charged, ...]:
    """Return every private round of a site, oldest first; the last one's `epsilon` is what is spent. For its report.

    Raises:
        BudgetBrokenError: if the ledger is not whole.
        OSError: if it cannot be read.
    """
    return tuple(_read(path).lines)


@dataclass(frozen=True)
class _Found:
    """What is on the disk: `owed` is the last line if the file lacks it, `whole` how many bytes stand before that."""

    lines: list[Charged]
    last: str
    owed: bytes
    whole: int


def _read(path: Path) -> _Found:
    # The lines first: a worker may write meanwhile, and then the tip is the newer one, as after an interruption.
    content = path.read_bytes() if path.exists() else b""
    tip = _tip(path).read_bytes() if _tip(path).exists() else None
    whole, tail = split_lines(content)
    lines: list[Charged] = []
    last = _FIRST
    for line in whole:
        lines.append(_parse(path, line, len(lines) + 1, last))
        last = hashlib.sha256(line).hexdigest()
    if tip is None and not content:
        return _Found(lines, last, b"", 0)
    if tip is None:
        raise BudgetBrokenError(f"{path.name} has {len(lines)} lines, and {_tip(path).name} is missing")
    if whole and not tail and tip == whole[-1] + b"\n":
        return _Found(lines, last, b"", len(content))
    latest = tip.removesuffix(b"\n")
    lines.append(_parse(_tip(path), latest, len(lines) + 1, last))
    if not is_torn(tail, tip):
        raise BudgetBrokenError(f"{path.name} ends in something else than the line that {_tip(path).name} holds")
    return _Found(lines, hashlib.sha256(latest).hexdigest(), tip, len(content) - len(tail))


def _parse(path: Path, content: bytes, number: int, previous: str) -> Charged:
    try:
        line = Charged.model_validate_json(content)
    except ValidationError as error:
        raise BudgetBrokenError(f"line {number} of {path.name} is not one of a budget") from error
    if line.sequence != number or line.previous != previous:
        raise BudgetBrokenError(f"line {number} of {path.name} does not follow the one before")
    return line


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(path: Path, whole: int, content: bytes) -> None:
    """Write a line behind so many whole bytes, in the place of what an interruption left there."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.ftruncate(handle, whole)
        try:
            written = os.write(handle, content)
            if written != len(content):
                raise OSError(errno.ENOSPC, f"only {written} of {len(content)} bytes were written", path.name)
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, whole)
            raise
    finally:
        os.close(handle)
    sync_folder(path.parent)


def _tip(path: Path) -> Path:
    return path.with_suffix(".tip")
