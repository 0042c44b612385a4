"""Measure the cost of reports: one site with 10,000 test images and 7 classes, and a federation of 1,000 sites.

python -m simulations.benches.report [--images 10000] [--sites 1000]
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ept_fed.reports.pages.html import render_site
from ept_fed.reports.pages.site_report import build_site_report
from ept_fed.reports.pages.write_reports import write_reports
from ept_fed.reports.run.predictions import SUBGROUP_PREFIX, prediction_columns
from ept_fed.reports.run.read_run import read_run
from ept_fed.reports.run.run_folder import site_folder
from ept_fed.storage.files import append_json_line, write_csv, write_json, write_text

_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
_SHARES = (0.03, 0.05, 0.11, 0.02, 0.11, 0.66, 0.02)
_GAINS = {"local": 1.0, "federated": 1.5}
_SUBGROUPS = ("age", "sex")


def main() -> None:
    """Print the seconds and the file sizes."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=10_000, help="number of test images of the single site")
    parser.add_argument("--sites", type=int, default=1000, help="sites of the federation, with 60 test images each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ept-fed-bench-") as scratch:
        _time_one_site(Path(scratch) / "one", arguments.images)
        _time_federation(Path(scratch) / "many", arguments.sites)


def _time_one_site(folder: Path, images: int) -> None:
    _write_run(folder, ["site-1"], images, rounds=50)
    clocks = [_clocks()]
    run = read_run(folder)
    clocks.append(_clocks())
    report = build_site_report(run, "site-1")
    clocks.append(_clocks())
    page = render_site(report)
    clocks.append(_clocks())
    (document,) = [path for path in write_reports(folder) if path.name == "report.json"]
    print(f"one site, {images:,} test images, {len(_CLASSES)} classes, 1,000 draws:")
    for name, before, after in zip(("read", "statistics", "page"), clocks, clocks[1:], strict=False):
        print(f"  {name} {_describe(before, after)}")
    print(f"  report.html {len(page.encode()) / 1e6:.2f} MB, report.json {document.stat().st_size / 1e6:.2f} MB")


def _time_federation(folder: Path, sites: int) -> None:
    _write_run(folder, [f"site-{place:04d}" for place in range(sites)], 60, rounds=20)
    before = _clocks()
    write_reports(folder)
    spent, size = _describe(before, _clocks()), (folder / "report.html").stat().st_size
    print(f"federation of {sites:,} sites, 60 test images each: {spent}, report.html {size / 1e6:.2f} MB")


def _clocks() -> tuple[float, float]:
    """Return wall and processor seconds; on a shared machine, only the processor seconds are reproducible."""
    return time.perf_counter(), time.process_time()


def _describe(before: tuple[float, float], after: tuple[float, float]) -> str:
    return f"{after[0] - before[0]:.1f} s ({after[1] - before[1]:.1f} s of a processor)"


def _write_run(folder: Path, sites: Sequence[str], images: int, rounds: int) -> None:
    write_text(folder / "config.yaml", yaml.safe_dump({"data": {"task": "single_label", "source": "phantoms"}}))
    exchange = {"train": {"loss": 1.0}, "evaluation": {"auc": 0.7}, "bytes_sent": 3000, "bytes_received": 2000}
    for number in range(1, rounds + 1):
        record = {"round": number, "seconds": 1.0, "aggregated": list(sites), "refused": []}
        append_json_line(folder / "rounds.jsonl", record | {"sites": dict.fromkeys(sites, exchange)})
    columns = prediction_columns(_CLASSES, _SUBGROUPS)
    for place, site in enumerate(sites):
        rows = _draw_rows(np.random.default_rng(place), images)
        write_csv(folder / "sites" / site_folder(site) / "predictions.csv", rows, columns)
    write_json(
        folder / "report.json",
        {
            "schema": 1,
            "status": "done",
            "name": "bench",
            "run": "0" * 16,
            "seed": 0,
            "rounds": rounds,
            "share": "prompts",
            "strategy": "fedavg",
            "classes": list(_CLASSES),
            "payload": {"layout": [["sinks", [12, 65]]], "hash": "0" * 64, "bytes": 3120},
            "data": [],
            "settings": list(_GAINS),
            "test_images": dict.fromkeys(sites, images),
            "traffic": {},
        },
    )


def _draw_rows(rng: np.random.Generator, images: int) -> list[dict[str, Any]]:
    """Return rows of test images, two per patient, and of a fifth as many validation images, for every setting."""
    rows: list[dict[str, Any]] = []
    for split, count in (("test", images), ("validation", images // 5)):
        C = len(_CLASSES)
        labels = rng.choice(C, count, p=_SHARES)
        hardness, ages = rng.normal(size=(count, C)), rng.integers(20, 90, count)
        for setting, gain in _GAINS.items():
            powers = np.exp(hardness + gain * (np.arange(C)[None, :] == labels[:, None]) + rng.normal(size=(count, C)))
            scores = powers / powers.sum(axis=1, keepdims=True)
            for place in range(count):
                row: dict[str, Any] = {
                    "split": split,
                    "image": f"{split}-{place}.png",
                    "group": f"{split} patient {place // 2}",
                }
                row |= {"label": _CLASSES[labels[place]], "setting": setting, "predicted": ""}
                row |= {f"p[{name}]": round(float(p), 9) for name, p in zip(_CLASSES, scores[place], strict=True)}
                attributes = {"age": ages[place], "sex": ("female", "male")[place % 2]}
                rows.append(row | {f"{SUBGROUP_PREFIX}{name}": value for name, value in attributes.items()})
    return rows


if __name__ == "__main__":
    main()
