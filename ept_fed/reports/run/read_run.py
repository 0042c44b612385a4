"""Reading a run folder; all problems of a damaged folder are reported together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ept_fed.config.yaml_reader import parse_yaml
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.reports.run.cross_site import CROSS_SITE_FILE, CrossSite, read_cross_site
from ept_fed.reports.run.read_predictions import SitePredictions, read_predictions
from ept_fed.reports.run.round_record import RoundRecord, split_lines
from ept_fed.reports.run.run_document import parse_report
from ept_fed.reports.run.run_folder import site_folder

__all__ = ["RunResult", "read_run"]

_SCHEMA = 1


@dataclass(frozen=True)
class RunResult:
    """The content of a finished run's folder.

    Attributes:
        folder: the run folder.
        config: the resolved settings of config.yaml.
        report: content of report.json: classes, payload layout, traffic, data counts, notes, versions.
        rounds: the lines of rounds.jsonl, in order.
        sites: predictions by site, in the order of report.json.
        task: single_label or multi_label.
        case: description of one group, e.g. "one value of the column 'lesion_id'".
        cross_site: local models at every site, if the run has them.
    """

    folder: Path
    config: Mapping[str, Any]
    report: Mapping[str, Any]
    rounds: tuple[RoundRecord, ...]
    sites: Mapping[str, SitePredictions]
    task: str
    case: str
    cross_site: CrossSite | None


def read_run(folder: Path) -> RunResult:
    """Return the content of config.yaml, report.json, rounds.jsonl and every site's predictions.csv.

    Raises:
        InputRefusedError: with all missing files, damaged lines and invalid values.
    """
    if not folder.is_dir():
        raise InputRefusedError(
            [Problem("RUN", str(folder), "is not a folder; give a run folder of `ept-fed simulate`")]
        )
    problems: list[Problem] = []
    config = _read_config(folder / "config.yaml", problems)
    report = _read_report(folder / "report.json", problems)
    rounds = _read_rounds(folder / "rounds.jsonl", problems)
    if not report:
        raise InputRefusedError(problems)
    task = str(config.get("data", {}).get("task", "single_label"))
    sites = {}
    for site in report["test_images"]:
        path = folder / "sites" / site_folder(site) / "predictions.csv"
        table = read_predictions(path, report["classes"], report["settings"], task, problems)
        if table is not None:
            sites[site] = table
    cross_site = read_cross_site(folder / CROSS_SITE_FILE, tuple(report["test_images"]), report["classes"], problems)
    if problems:
        raise InputRefusedError(problems)
    return RunResult(folder, config, report, rounds, sites, task, _describe_case(config), cross_site)


def _read_config(path: Path, problems: list[Problem]) -> dict[str, Any]:
    text = _read_text(path, problems)
    if text is None:
        return {}
    try:
        content = parse_yaml(text)
    except ValueError as error:
        problems.append(Problem(path.name, str(path), f"is not YAML: {error}"))
        return {}
    if not isinstance(content, dict) or not isinstance(content.get("data", {}), dict):
        problems.append(Problem(path.name, str(path), "does not contain the settings of a run; restore the file"))
        return {}
    return content


def _read_report(path: Path, problems: list[Problem]) -> dict[str, Any]:
    text = _read_text(path, problems)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(Problem(path.name, str(path), f"is not JSON ({error}); restore the file"))
        return {}
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        fix = f"has another schema; this version of ept-fed reads {_SCHEMA}, so use the version that wrote the run"
        problems.append(Problem(f"{path.name}: schema", found, fix))
        return {}
    try:
        return parse_report(text)
    except ValueError as error:
        problems.append(Problem(path.name, str(path), f"is not the report of a run ({error}); restore the file"))
        return {}


def _read_rounds(path: Path, problems: list[Problem]) -> tuple[RoundRecord, ...]:
    text = _read_text(path, problems)
    rounds = []
    for number, line in enumerate(split_lines(text or ""), start=1):
        try:
            rounds.append(RoundRecord.from_line(line))
        except ValueError as error:
            fix = f"is not a round ({error}); restore the file"
            problems.append(Problem(f"{path.name} line {number}", line[:40], fix))
    return tuple(rounds)


def _read_text(path: Path, problems: list[Problem]) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problems.append(Problem(path.name, str(path), "is missing; every run folder needs it, so restore the file"))
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(path.name, str(path), f"cannot be read ({error})"))
    return None


def _describe_case(config: Mapping[str, Any]) -> str:
    data = config.get("data", {})
    columns = data.get("columns") if isinstance(data.get("columns"), dict) else {}
    if columns and columns.get("group"):
        return f"all images with one value of the manifest column “{columns['group']}”"
    return "all images of one patient" if data.get("source") == "phantoms" else "one group of the data source"
