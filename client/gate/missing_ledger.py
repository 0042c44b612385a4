"""Evidence in the site's state of the rounds that were served, for comparison with the ledger.

Each item of a run in the state was written after its entry in the ledger. So if the ledger is missing, or contains less
than the state, it was removed or cut together with its tip, or it is an older copy. Only a person may begin a new
ledger then (`ept-fed audit begin`), and the first entry records that.

Not covered: somebody who removes or replaces the whole state leaves no evidence. Comparison with an end of the ledger
that was noted elsewhere detects this.
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
_REASON, _EARLIER = "begun_anew", "earlier_runs"  # keys in the first entry's `about`


def find_served(state: Path, charged: Iterable[Charged], site: str) -> dict[str, int]:
    """Return every run in the state, with the last round for which there is evidence; 0 if there is none.

    Args:
        state: the worker's state folder.
        charged: the lines of the site's budget.
        site: the site's name.
    """
    found = [(path.stem, 0) for path in state.glob(_PROMPTS)]
    found += [(path.parent.name, 0) for pattern in _AGREED for path in _glob_runs(state, pattern)]
    rounds = [(path.parent.name, path.stem.removeprefix("round-")) for path in _glob_runs(state, _STATES)]
    found += [(run, int(number)) for run, number in rounds if number.isdigit()]
    for run in {run for run, _ in found}:
        answers, _ = RunRecord(state / run, run=run, site=site).read_answers()
        found += [(run, answer.round or 0) for answer in answers]
    found += [(line.run, line.round) for line in charged]
    # Sorted by run and round, so that `dict` keeps the last round of each run.
    return dict(sorted(found))


def find_missing(served: Mapping[str, int], history: Sequence[Entry]) -> dict[str, int]:
    """Return the runs and rounds that are in the state but not in the ledger, in the form of `find_served`."""
    known = {run: known.last_round for run, known in load_runs(history).items()}
    _, earlier = load_restart(history[0]) if history else ("", {})
    return {run: last for run, last in served.items() if last > max(known.get(run, -1), earlier.get(run, -1))}


def serialize_served(served: Mapping[str, int]) -> str:
    """Return runs and rounds as readable text: "run-a to round 7, run-b"."""
    return ", ".join(run + (f" to round {last}" if last else "") for run, last in served.items())


def record_anew(reason: str, served: Mapping[str, int]) -> dict[str, str]:
    """Return the additional `about` for the first entry of a ledger that a person begins.

    Args:
        reason: the reason that the person gives.
        served: the runs of an earlier ledger that are in the state.
    """
    # A run's name has neither spaces nor colons.
    return {_REASON: reason, _EARLIER: " ".join(f"{run}:{last}" for run, last in served.items())}


def load_restart(first: Entry) -> tuple[str, dict[str, int]]:
    """Return the arguments that `record_anew` was given; the reason is empty for a site's first ledger."""
    pairs = [pair.rpartition(":") for pair in first.about.get(_EARLIER, "").split()]
    served = {run: int(last) for run, _, last in pairs if last.isascii() and last.isdigit()}
    return first.about.get(_REASON, ""), served


def _glob_runs(state: Path, pattern: str) -> list[Path]:
    # No run's name begins with a dot. Files in .gate are named after runs, and a run may be called "round-3".
    return [path for path in state.glob(pattern) if not path.parent.name.startswith(".")]
