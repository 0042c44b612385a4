"""Names and numbers for trackers, computed from the lines of rounds.jsonl and from the final table."""

import hashlib
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ept_fed.config.diff import flatten_settings
from ept_fed.config.experiment import LOCAL_SETTINGS, Experiment
from ept_fed.reports.run.round_record import RoundRecord

__all__ = ["MAX_SITES", "describe_settings", "list_result", "list_round", "plain_name", "tabulate"]

MAX_SITES = 100
"""Above this number of sites, only sums and medians are tracked, because no viewer can show thousands of curves."""

_LONGEST_NAME = 80


def plain_name(name: str) -> str:
    """Return a name that every viewer accepts: ASCII letters, digits, `_`, `-` and `.`.

    If characters had to be replaced or cut, a digest is appended so that different names remain different.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:_LONGEST_NAME]
    if plain == name and plain.strip("."):
        return plain
    return f"{plain.strip('.')}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def list_round(record: RoundRecord) -> dict[str, float]:
    """Return the scalars of one round: `what/site` for each site, `median/what` and `round/what`.

    Args:
        record: a line of rounds.jsonl.

    Returns:
        finite numbers only; a value that was not measured is omitted. `auc` is the AUC on validation images after the
        round; bytes count serialized messages to a site and from it.
    """
    sites, refused = record.sites, [refusal.site for refusal in record.refused]
    columns = {
        "loss": {site: exchange.train.get("loss", math.nan) for site, exchange in sites.items()},
        "auc": {site: exchange.evaluation.get("auc", math.nan) for site, exchange in sites.items()},
    }
    known = {what: {s: x for s, x in by.items() if _is_number(x)} for what, by in columns.items()}
    counts = {
        "bytes_to_site": {site: float(exchange.bytes_sent) for site, exchange in sites.items()},
        "bytes_from_site": {site: float(exchange.bytes_received) for site, exchange in sites.items()},
    }
    numbers = {
        "round/seconds": record.seconds,
        "round/refused": float(len(refused)),
        "round/averaged": float(len(record.aggregated)),
        **{f"round/{what}": sum(by.values()) for what, by in counts.items()},
        **{f"median/{what}": statistics.median(by.values()) for what, by in known.items() if by},
    }
    if len(sites) <= MAX_SITES:
        by_site = {**known, **counts, "refused": {site: float(refused.count(site)) for site in sorted(set(refused))}}
        numbers |= {f"{what}/{plain_name(site)}": x for what, by in by_site.items() for site, x in by.items()}
    return {name: number for name, number in numbers.items() if _is_number(number)}


def list_result(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the scalars of the final table as `test/column/site`; it has a row per site and a last row, the mean."""
    shown = rows if len(rows) <= MAX_SITES + 1 else rows[-1:]
    return {
        f"test/{plain_name(column)}/{plain_name(str(row['site']))}": float(value)
        for row in shown
        for column, value in row.items()
        if column != "site" and _is_number(value)
    }


def tabulate(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the final table as Markdown, with `–` for undefined values."""
    if not rows:
        return "No round was averaged."
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_show(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe_settings(experiment: Experiment) -> dict[str, str | float | bool]:
    """Return the settings that have the same meaning on every machine, by dotted name; lists and null are JSON.

    Omitted: locations and names of a site's files, devices, free text, and settings that only a benchmark reads.
    """
    flat = flatten_settings(experiment.model_dump(mode="json", exclude=LOCAL_SETTINGS | {"benchmark": True}))
    return {
        ".".join(plain_name(part) for part in key.split(".")): value
        if isinstance(value, str | int | float)
        else json.dumps(value)
        for key, value in flat.items()
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if math.isfinite(value) else "–"
    return str(value).replace("|", "\\|").replace("\n", " ")
