"""The folder of a run: settings, rounds, prompts and results; no file is ever partially written.

config.yaml                     the resolved settings, and the version of ept-fed that wrote them
partition.csv, partition.png    number of images per site, split and class
rounds.jsonl                    one line per round
checkpoints/round-NNNN.safetensors  state that the server needs to continue after each round
state/                          state that the sites need to continue; removed when the run is done
prompts/round-NNN.safetensors   the global payload after each round, by tensor name
report.html                     the federation's page, with the verdict of every site
sites/<site>/report.html        the site's own page, and report.json with the same numbers
sites/<site>/shared.json        score histograms that the site shares: counts, but no single scores
sites/<site>/predictions.csv    predictions on the site's validation and test images in each setting
sites/<site>/model.safetensors  the model that the site uses: sinks, tokens, head, and metadata
report.json, report.csv         the final table
gates/                          policy and the sites' ledgers, if the run has a policy
cross_site.csv                  each site's local model at every site, if `evaluation.cross_site` is true
tracking/                       data for TensorBoard and MLflow, if the run is tracked
attack.json, attack.csv         results of `ept-fed audit attack`; attack-*.png only if images were requested
run.log                         log of the code, including tracebacks of failed sites
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors.numpy import save

import ept_fed
from ept_fed.config.diff import compare_settings
from ept_fed.config.experiment import Experiment
from ept_fed.config.yaml_reader import parse_yaml
from ept_fed.data.records.counts import COUNT_COLUMNS, CountRow
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.round_record import RoundRecord, split_lines
from ept_fed.run_plan.plan import Plan
from ept_fed.storage.checkpoint_file import read_checksummed
from ept_fed.storage.files import append_json_line, dump_json, write_bytes, write_csv, write_json, write_text

__all__ = ["RunFolder", "site_folder"]


_LONGEST_FOLDER = 150
_WRITTEN_BY = re.compile(r"# Written by ept-fed (\S+)$")
# Names of files that `ept_fed.storage.files` leaves if its process is killed before the rename.
_HALF_WRITTEN = re.compile(r"^\..+\.[a-z0-9_]{8}$")


def site_folder(site: str) -> str:
    """Return the folder name of a site: its name, percent-encoded and shortened where necessary."""
    encoded = quote(site, safe=" ")
    if len(encoded) > _LONGEST_FOLDER:
        return f"{encoded[:100]}-{hashlib.sha256(site.encode()).hexdigest()[:16]}"
    return encoded.replace(".", "%2E") if not encoded.strip(". ") else encoded


class RunFolder:
    """Creates and fills one run's folder."""

    def __init__(self, path: Path) -> None:
        """Set the path of the folder; nothing is written before `create`."""
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Folder of the server's checkpoints."""
        return self.path / "checkpoints"

    def states(self, setting: str, site: str) -> Path:
        """Return the folder of a site's states in a setting."""
        return self.path / "state" / setting / site_folder(site)

    @property
    def prefixes(self) -> Path:
        """The folder of outputs of frozen layers, which is deleted with the states."""
        return self.path / "state" / "prefixes"

    @property
    def gates(self) -> Path:
        """Folder of the virtual sites' gates."""
        return self.path / "gates"

    def is_free(self) -> bool:
        """Return whether the path does not exist, or is an empty folder."""
        if not self.path.is_dir():
            return not self.path.is_file()
        return all(_HALF_WRITTEN.match(path.name) for path in self.path.iterdir())

    def check_free(self) -> list[Problem]:
        """Return a problem if the path is not free."""
        try:
            free = self.is_free()
        except OSError as error:
            return [Problem("--out", str(self.path), f"cannot be used ({error.strerror}); name another folder")]
        fix = "already exists and is not empty; name another folder, or add --resume to continue an interrupted run"
        return [] if free else [Problem("--out", str(self.path), fix)]

    def require_version(self) -> None:
        """Refuse a run that another version of ept-fed wrote, before its settings are read.

        Raises:
            InputRefusedError: if the versions differ; the message states both.
        """
        written, ours = self._find_version(), ept_fed.__version__
        if written not in (None, ours):
            fix = f"was written by ept-fed {written}, this is {ours}; resume it with {written}, or start a new run"
            raise InputRefusedError([Problem("--resume", str(self.path), fix)])

    def _find_version(self) -> str | None:
        """Return the version in the first line of config.yaml, or in the newest checkpoint; None without either."""
        try:
            with (self.path / "config.yaml").open(encoding="utf-8") as file:
                match = _WRITTEN_BY.match(file.readline())
            if match is not None:
                return match.group(1)
            _, about = read_checksummed(max(self.checkpoints.glob("round-*.safetensors")))
        except (OSError, ValueError):
            return None
        code = about.get("code")
        return code if isinstance(code, str) else None

    def check_resumable(self, experiment: Experiment) -> list[Problem]:
        """Return a problem for each setting that differs from the folder's, or one if the folder contains no run."""
        try:
            held = parse_yaml((self.path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return [
                Problem("--out", str(self.path), f"contains no run to resume ({type(error).__name__}: config.yaml)")
            ]
        return [
            Problem(key, ours, f"the run to resume has {theirs}; use this value, or start a new run in another folder")
            for key, theirs, ours in compare_settings(held, experiment)
        ]

    def create(self, config_yaml: str) -> None:
        """Create the folder and write the resolved settings.

        Raises:
            InputRefusedError: if the path is not free or cannot be written.
        """
        problems = self.check_free()
        if problems:
            raise InputRefusedError(problems)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write_settings(config_yaml)
        except OSError as error:
            raise InputRefusedError(
                [Problem("--out", str(self.path), f"cannot be written ({error.strerror})")]
            ) from error

    def write_partition(self, rows: Sequence[CountRow]) -> None:
        """Write the numbers of images per site from `count_images`, as a table and as a chart."""
        # Imported here, because the server also uses run folders and must not load matplotlib and scikit-learn.
        from ept_fed.reports.charts.partition import draw_partition

        write_csv(self.path / "partition.csv", rows, COUNT_COLUMNS)
        write_bytes(self.path / "partition.png", draw_partition(rows))

    def renew(self, config_yaml: str) -> None:
        """Write the settings of a resumed run again, because paths and other local settings may have changed."""
        self._write_settings(config_yaml)

    def _write_settings(self, config_yaml: str) -> None:
        write_text(self.path / "config.yaml", f"# Written by ept-fed {ept_fed.__version__}\n{config_yaml}")

    def write_round(self, record: RoundRecord) -> None:
        """Append one round's line to rounds.jsonl."""
        append_json_line(self.path / "rounds.jsonl", record.to_json())

    def read_rounds(self) -> list[RoundRecord]:
        """Return the records in the complete lines of rounds.jsonl; none if there is no such file yet.

        Raises:
            InputRefusedError: if a line is not a round.
        """
        path = self.path / "rounds.jsonl"
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            return [RoundRecord.from_line(line) for line in split_lines(text)]
        except (OSError, ValueError) as error:
            raise InputRefusedError(
                [Problem("rounds.jsonl", str(path), f"is damaged ({error}); restore it")]
            ) from error

    def keep_rounds(self, count: int) -> None:
        """Keep only the first `count` lines of rounds.jsonl, and delete partially written files of a killed process."""
        for path in self.path.rglob(".*"):
            if path.is_file() and _HALF_WRITTEN.match(path.name):
                path.unlink()
        if (self.path / "rounds.jsonl").exists():
            kept = [dump_json(record.to_json()) + "\n" for record in self.read_rounds()[:count]]
            write_text(self.path / "rounds.jsonl", "".join(kept))

    def read_finished(self) -> dict[str, Any] | None:
        """Return report.json if the run is completely finished, None otherwise."""
        path = self.path / "report.json"
        if not path.exists():
            return None
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputRefusedError([Problem("report.json", str(path), f"is damaged ({error}); remove it")]) from error
        if not isinstance(report, dict) or report.get("status") not in ("done", "failed"):
            raise InputRefusedError([Problem("report.json", str(path), "is not the report of a run; remove it")])
        return report if report["status"] == "failed" or (self.path / "report.html").exists() else None

    def drop_states(self) -> None:
        """Delete the sites' states of a finished run."""
        shutil.rmtree(self.path / "state", ignore_errors=True)

    def write_prompts(self, plan: Plan, round_number: int, payload: Vector) -> Path:
        """Write the global payload after a round, split into its named tensors."""
        about = {
            "schema": 1,
            "run": plan.run,
            "round": round_number,
            "backbone_digest": plan.backbone_digest,
            "layout_hash": plan.layout.hash,
        }
        path = self.path / "prompts" / f"round-{round_number:03d}.safetensors"
        # One key only: safetensors writes several keys in random order, and equal runs must give equal bytes.
        write_bytes(path, save(plan.layout.unflatten(payload), metadata={"ept_fed": json.dumps(about)}))
        return path

    def write_predictions(
        self, site: str, rows: Sequence[Mapping[str, Any]], classes: Sequence[str], subgroups: Sequence[str] = ()
    ) -> None:
        """Write the rows from `list_predictions` as the predictions of a site."""
        from ept_fed.reports.run.predictions import prediction_columns

        path = self.path / "sites" / site_folder(site) / "predictions.csv"
        write_csv(path, rows, prediction_columns(classes, subgroups))

    def write_site_model(self, site: str, tensors: Mapping[str, Vector], about: Mapping[str, Any]) -> None:
        """Write a site's model: payload tensors, its head and a description; this file stays at the site."""
        path = self.path / "sites" / site_folder(site) / "model.safetensors"
        write_bytes(path, save(dict(tensors), metadata={"ept_fed": json.dumps(about)}))

    def write_report(self, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write report.json, and its table as report.csv."""
        write_json(self.path / "report.json", report)
        if rows:
            write_csv(self.path / "report.csv", rows, list(rows[0]))
