"""Witnesses: what a site's own state says was served, held against its ledger.

Whatever the state holds of a run was written after the ledger had its entry of it. So a ledger that is not there, or
knows less than the state, was removed or cut together with its tip, or is of another day. Only a person may begin a new
one then (`ept-fed audit begin`), and its first entry says so.

Not covered: whoever removes or puts back the whole state leaves no witness; an end that was noted elsewhere tells.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from client.gate.privacy_budget import Charged
from client.gate.run_history import load_runs
from client.ledger.entry import Entry
from client.site.run_record import RunRecord

__all__ = ["find_missing", "find_served", "load_restart", "record_anew", "serialize_served"]

_PROMPTS, _STATES = ".gate/*.safetensors", "*/round-*.safetensors"
_AGREED = ("*/proposal.json", "*/received.safetensors", "*/answers.jsonl")
_REASON, _EARLIER = "begun_anew", "earlier_runs"  # in the first entry's `about`


def find_served(state: Path, charged: Iterable[Charged], site: str) -> dict[str, int]:
    """Return every run that the state knows, with the last round that left a trace; 0 if none did.

    Args:
        state: the worker's folder.
        charged: the lines of its budget.
        site: its name.
    """
    found = [(path.stem, 0) for path in state.glob(_PROMPTS)]
    found += [(path.parent.name, 0) for pattern in _AGREED for path in _glob_runs(state, pattern)]
    rounds = [(path.parent.name, path.stem.removeprefix("round-")) for path in _glob_runs(state, _STATES)]
    found += [(run, int(number)) for run, number in rounds if number.isdigit()]
    for run in {run for run, _ in found}:
        answers, _ = RunRecord(state / run, run=run, site=site).read_answers()
        found += [(run, answer.round or 0) for answer in answers]
    found += [(line.run, line.round) for line in charged]
    # A run's last round comes last, and stays.
    return dict(sorted(found))


def find_missing(served: Mapping[str, int], history: Sequence[Entry]) -> dict[str, int]:
    """Return what the state knows and the ledger does not, like `find_served`."""
    known = {run: known.last_round for run, known in load_runs(history).items()}
    _, earlier = load_restart(history[0]) if history else ("", {})
    return {run: last for run, last in served.items() if last > max(known.get(run, -1), earlier.get(run, -1))}


def serialize_served(served: Mapping[str, int]) -> str:
    """Return runs and rounds for people: "run-a to round 7, run-b"."""
    return ", ".join(run + (f" to round {last}" if last else "") for run, last in served.items())


def record_anew(reason: str, served: Mapping[str, int]) -> dict[str, str]:
    """Return what the first entry of a ledger that a person begins says besides.

    Args:
        reason: of that person.
        served: what the state knows of an earlier ledger's runs.
    """
    # A run's name has neither spaces nor colons.
    return {_REASON: reason, _EARLIER: " ".join(f"{run}:{last}" for run, last in served.items())}


def load_restart(first: Entry) -> tuple[str, dict[str, int]]:
    """Return what `record_anew` was given; an empty reason for a ledger that is its site's first."""
    pairs = [pair.rpartition(":") for pair in first.about.get(_EARLIER, "").split()]
    served = {run: int(last) for run, _, last in pairs if last.isascii() and last.isdigit()}
    return first.about.get(_REASON, ""), served


def _glob_runs(state: Path, pattern: str) -> list[Path]:
    # No run has a name that begins with a dot, and a run's prompts bear its name, be it "round-3".
    return [path for path in state.glob(pattern) if not path.parent.name.startswith(".")]
