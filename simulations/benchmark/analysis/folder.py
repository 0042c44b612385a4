"""The files that `ept-fed benchmark --analyse` adds to a benchmark's folder; see `simulations.benchmark.folder`.

analysis/<key>.safetensors       a cell's features before and after tuning, and a few images
analysis/features/<method>.png   a method's classes before and after
analysis/scaling/<method>.png    effect of the prompts on the patches of those images
analysis/overview.png            all methods
analysis.csv                     every measure, by method, moment, site and class
analysis.html                    all of this on one page, which contains images of the sites
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ept_fed.config.benchmark_cell import Cell
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.evaluation.feature_table import ALL_CLASSES, ALL_SITES, measure_sites, merge_notes
from ept_fed.reports.run.run_folder import site_folder
from ept_fed.storage.checkpoint_file import DamagedCheckpointError
from ept_fed.storage.files import write_bytes, write_csv, write_text
from simulations.benchmark.analysis.feature_charts import draw_features, draw_overview
from simulations.benchmark.analysis.feature_record import MOMENTS, FeatureRecord, read_record, write_record
from simulations.benchmark.analysis.page import AnalysedMethod, render_analysis
from simulations.benchmark.analysis.scaling_chart import draw_scaling

__all__ = ["AnalysisFolder"]


class AnalysisFolder:
    """Stores the features of a benchmark's cells, and makes tables, figures and the page from them."""

    def __init__(self, path: Path) -> None:
        """Set the benchmark's folder."""
        self.path = path

    @property
    def page(self) -> Path:
        """Path of the HTML page."""
        return self.path / "analysis.html"

    def holds(self, key: str) -> bool:
        """Return whether a cell's features are stored."""
        return self._locate(key).exists()

    def check(self, cells: Iterable[Cell]) -> list[Problem]:
        """Return a problem for each of these cells whose features are stored but damaged."""
        return self._read(cell.key for cell in cells)[1]

    def write(self, record: FeatureRecord) -> None:
        """Store a cell's features."""
        write_record(self._locate(record.key), record)

    def write_page(
        self, name: str, cells: Sequence[Cell], finished: Mapping[str, Mapping[str, Any]], left_out: Sequence[str]
    ) -> list[str]:
        """Write table, figures and page of the cells whose features are stored.

        Args:
            name: of the experiment.
            cells: one per method, all of the same shots, seed and setting; at least one.
            finished: the benchmark's lines by key.
            left_out: methods of the grid without a cell in this setting.

        Returns:
            Sentences about methods that were not analysed, measures that are undefined, and models that differ from
            those of the benchmark.

        Raises:
            InputRefusedError: for damaged features, with every file.
        """
        records, problems = self._read(cell.key for cell in cells)
        if problems:
            raise InputRefusedError(problems)
        setting = cells[0].setting
        notes = [f"{method} has no cell in setting {setting}, and is not analysed" for method in left_out]
        rows: list[dict[str, Any]] = []
        said: dict[str, list[tuple[str, str]]] = {}
        methods: list[AnalysedMethod] = []
        drawn: dict[str, tuple[bytes, bytes | None]] = {}
        for cell in cells:
            record = records.get(cell.key)
            if record is None or cell.key not in finished:
                notes.append(f"{cell.title}: not analysed, because its training produced no model")
                continue
            notes += _compare(cell, record, finished[cell.key])
            own = _measure(cell, record, said)
            rows += own
            if cell.key not in drawn:
                scaling = draw_scaling(record.scaling, record.classes) if record.scaling else None
                drawn[cell.key] = draw_features(record), scaling
            figure, scaling = drawn[cell.key]
            write_bytes(self._figure("features", cell.method), figure)
            if scaling is not None:
                write_bytes(self._figure("scaling", cell.method), scaling)
            methods.append(AnalysedMethod(cell.method, own, figure, scaling))
        notes += merge_notes(said)
        if not methods:
            return notes
        overview = draw_overview(
            {one.method: {moment: one.values(moment, ALL_SITES, ALL_CLASSES) for moment in MOMENTS} for one in methods}
        )
        write_bytes(self.path / "analysis" / "overview.png", overview)
        write_csv(self.path / "analysis.csv", rows, list(rows[0]))
        record = records[next(cell.key for cell in cells if cell.key in records)]
        write_text(self.page, render_analysis(name, cells[0], record, methods, overview, notes))
        return notes

    def _locate(self, key: str) -> Path:
        return self.path / "analysis" / f"{key}.safetensors"

    def _figure(self, kind: str, method: str) -> Path:
        return self.path / "analysis" / kind / f"{site_folder(method)}.png"

    def _read(self, keys: Iterable[str]) -> tuple[dict[str, FeatureRecord], list[Problem]]:
        records, problems = {}, []
        for key in dict.fromkeys(key for key in keys if self.holds(key)):
            try:
                records[key] = read_record(self._locate(key))
            except DamagedCheckpointError as broken:
                fix = f"{broken}; remove the file, and the cell is trained again for it"
                problems.append(Problem("--analyse", str(self.path), fix))
        return records, problems


def _measure(cell: Cell, record: FeatureRecord, said: dict[str, list[tuple[str, str]]]) -> list[dict[str, Any]]:
    """Return a cell's rows of analysis.csv, and add notes about undefined measures to `said`."""
    rows = []
    about = {
        "method": cell.method,
        "shots": cell.shots,
        "seed": cell.seed,
        "setting": cell.setting,
        "fold": cell.fold,
    }
    for moment in MOMENTS:
        found, notes = measure_sites(
            record.features[moment], record.labels, record.places, record.sites, record.classes
        )
        rows += [{**about, "when": moment, **row} for row in found]
        said[f"{cell.method}, {moment} tuning"] = notes
    return rows


def _compare(cell: Cell, record: FeatureRecord, line: Mapping[str, Any]) -> list[str]:
    """Return a sentence if the analysed model has other metrics than the cell's line in the benchmark."""
    if record.numbers == line["sites"]:
        return []
    aucs = [(record.numbers[site]["auc"], numbers["auc"]) for site, numbers in line["sites"].items()]
    known = [abs(ours - theirs) for ours, theirs in aucs if ours is not None and theirs is not None]
    apart = f"{max(known):.2g}" if known else "undefined"
    return [
        f"{cell.title}: the model of the analysis does not have the numbers of cells.jsonl (AUC differs by up to "
        f"{apart}), so the figures show another model than the tables"
    ]
