"""The site's privacy budget: the cost of every private round of every run, in one file that only grows.

`state/budget.jsonl` holds one line of JSON per round, and `budget.tip` holds only the last line. The tip is written
first. Both are on the disk before the round begins, so before any result of it can leave; a round that fails later is
charged all the same. If an interruption left the last line partially written or not written at all, the tip holds the
complete line, and the round counts as spent. Each line holds the hash of the line before, so that an altered, lost or
reordered line and a file that was cut or removed are detected. Nothing is spent from a damaged file: the worker does
not start until somebody at the site has inspected it.

ε is stated for one image of the site's training set, over all runs that used it. Runs on other images are added as
well, so the sum is an upper bound. Neither ε nor the remaining budget leaves the site; `read_budget` is for the site's
own report.

The gate notes each line's hash in its signed ledger, so that a budget file that was begun anew, or replaced by an older
copy, is detected as long as that ledger exists.
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
from client.site.privacy_plan import Mechanism, RoundCost
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
BUDGET = "budget"  # key in the `about` of a ledger's entry: the end of the budget at that time
_FIRST = "0" * 64
UNSPENT = f"0:{_FIRST}"  # the end of a budget without lines


class BudgetBrokenError(Exception):
    """The budget's file is damaged; nothing is spent from it."""


class OverspentError(Exception):
    """A round would cost more than the remaining budget."""


class Charged(Settings):
    """One private round: a line of the budget's file.

    Attributes:
        schema_version: version of this format, serialized as `schema`.
        sequence: 1, 2, 3, …
        time: UTC, by the site's clock.
        run: the run.
        round: number of the round; it may occur twice, because a round that is trained again is charged again.
        mechanism, clip: see `RoundCost`.
        noise_multiplier, sampling_rate, steps: see `GaussianSteps`.
        delta: δ for which `epsilon` is stated.
        epsilon: ε of all lines up to this one together.
        previous: SHA-256 of the line before; zeros in the first line.
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
        """The noise, sampling rate and steps for the accountant."""
        return GaussianSteps(self.noise_multiplier, self.sampling_rate, self.steps)


class BudgetLedger:
    """The open file of one site's budget; the lock of the gate's ledger ensures that only one process writes.

    Attributes:
        path: path of the file with the lines.
        charged: all rounds so far, oldest first.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Read the file without changing it; a missing file counts as empty if its tip is missing too.

        Raises:
            BudgetBrokenError: if it is damaged.
            OSError: if it cannot be read.
        """
        self.path, self._clock = path, clock
        found = _read(path)
        self.charged, self._last, self._owed, self._whole = found.lines, found.last, found.owed, found.whole
        self._size = _size(path)

    @property
    def owed(self) -> Charged | None:
        """The last round, if its line is partially written or missing after an interruption; it counts as spent."""
        return self.charged[-1] if self._owed else None

    @property
    def end(self) -> str:
        """Number and hash of the last line, for a later check that it still exists: "12:5f1c…"; "0:000…" if none."""
        return f"{len(self.charged)}:{self._last}"

    def holds(self, end: str) -> bool:
        """Return whether the line that was the last one at `end` still exists."""
        hashes = [line.previous for line in self.charged] + [self._last]
        number, _, last = end.partition(":")
        return number.isdigit() and int(number) < len(hashes) and hashes[int(number)] == last

    def complete(self) -> None:
        """Write the line of `owed`, if there is one.

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
        """Write down the cost of a round before it begins; the line is on the disk when this returns.

        Args:
            run: the run.
            round_number: number of the round.
            cost: cost of the round.
            delta: δ of the budget.
            epsilon: ε of the budget, which all rounds together must not exceed; None sets no bound.

        Raises:
            OverspentError: if the round would exceed the budget, or if there is no budget and the round was trained
                before; nothing is written.
            BudgetBrokenError: if the file was changed since this process wrote it.
            OSError: if it cannot be written; the round must not happen then.
        """
        if _size(self.path) != self._size:
            raise BudgetBrokenError(f"{self.path.name} was changed by another process")
        self.complete()
        if epsilon is None and any((line.run, line.round) == (run, round_number) for line in self.charged):
            raise OverspentError(
                f"round {round_number} was trained with noise before, and no budget bounds repetitions"
            )
        spending = cost.spending
        total = spent_epsilon([*(line.spending for line in self.charged), spending], delta)
        if epsilon is not None and not total <= epsilon:
            spent = spent_epsilon([line.spending for line in self.charged], delta)
            raise OverspentError(
                f"{spent:.4g} is spent, with this round it would be {total:.4g}; the budget is {epsilon:g}"
            )
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
        # From here on the round counts as spent, even if its line cannot be written.
        self.charged.append(line)
        self._last, self._owed = hashlib.sha256(content).hexdigest(), content + b"\n"
        self.complete()
        return line


def read_budget(path: Path) -> tuple[Charged, ...]:
    """Return all private rounds of a site, oldest first, for its report; the last one's `epsilon` is the amount spent.

    Raises:
        BudgetBrokenError: if the file is damaged.
        OSError: if it cannot be read.
    """
    return tuple(_read(path).lines)


@dataclass(frozen=True)
class _Found:
    """The content on the disk: `owed` is the last line if the file lacks it, `whole` the number of bytes before it."""

    lines: list[Charged]
    last: str
    owed: bytes
    whole: int


def _read(path: Path) -> _Found:
    # The lines first: if a worker writes meanwhile, the tip is newer than the lines, as after an interruption.
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
        raise BudgetBrokenError(f"the end of {path.name} is not the line in {_tip(path).name}")
    return _Found(lines, hashlib.sha256(latest).hexdigest(), tip, len(content) - len(tail))


def _parse(path: Path, content: bytes, number: int, previous: str) -> Charged:
    try:
        line = Charged.model_validate_json(content)
    except ValidationError as error:
        raise BudgetBrokenError(f"line {number} of {path.name} is not a valid line of a budget") from error
    if line.sequence != number or line.previous != previous:
        raise BudgetBrokenError(f"line {number} of {path.name} does not follow the line before")
    return line


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(path: Path, whole: int, content: bytes) -> None:
    """Write a line after the first `whole` bytes; bytes of a partially written line there are overwritten."""
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
