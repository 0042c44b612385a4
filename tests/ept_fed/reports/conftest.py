"""Synthetic run folders, made in milliseconds, with the unusual properties that a test needs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ept_fed.reports.run.predictions import SUBGROUP_PREFIX, prediction_columns
from ept_fed.reports.run.run_folder import site_folder
from ept_fed.storage.files import append_json_line, write_csv, write_json, write_text

CLASSES = ("akiec", "bcc", "nv")
MakeRun = Callable[..., Path]


def list_rows(
    rng: np.random.Generator,
    classes: Sequence[str],
    patients: Sequence[int],
    gains: Mapping[str, float],
    *,
    split: str = "test",
    multi_label: bool = False,
) -> list[dict[str, Any]]:
    """Return rows of predictions, with two images per patient.

    `patients` is the number by class. A setting's gain is the advantage of the true class in the logits.
    """
    rows = []
    labels = np.repeat(np.arange(len(classes)), patients)
    hardness = rng.normal(size=(2 * len(labels), len(classes)))
    for setting, gain in gains.items():
        for i, label in enumerate(np.repeat(labels, 2)):
            logits = hardness[i] + gain * (np.arange(len(classes)) == label)
            p = 1 / (1 + np.exp(-logits)) if multi_label else np.exp(logits) / np.exp(logits).sum()
            name = classes[label]
            row = {"image": f"image-{split}-{i}.png", "group": f"patient-{i // 2}", "label": name, "setting": setting}
            row |= {"predicted": classes[int(p.argmax())]} | {
                f"p[{other}]": round(float(x), 6) for other, x in zip(classes, p, strict=True)
            }
            rows.append({"split": split} | row)
    return rows


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(
        *,
        sites: Sequence[str] = ("north", "south"),
        classes: Sequence[str] = CLASSES,
        patients: Sequence[int] = (20, 20, 20),
        gains: Mapping[str, float] | None = None,
        validation: Sequence[int] | None = None,
        rounds: int = 2,
        task: str = "single_label",
        name: str = "made-up",
        notes: Sequence[str] = (),
        refused: Sequence[Mapping[str, Any]] = (),
        subgroups: Mapping[str, Callable[[int], str]] | None = None,
    ) -> Path:
        folder = tmp_path / "run"
        gains = {"local": 0.5, "federated": 2.0} if gains is None else gains
        write_text(folder / "config.yaml", yaml.safe_dump({"data": {"task": task, "source": "phantoms"}}))
        for number in range(1, rounds + 1):
            exchange = {
                "examples": 10,
                "train": {"loss": 1 / number},
                "evaluation": {"auc": 0.5 + number / 20},
                "bytes_sent": 3000,
                "bytes_received": 2000,
                "train_bytes_received": 1500,
            }
            record = {"schema": 1, "round": number, "seconds": 1.5, "asked": list(sites), "aggregated": list(sites)}
            record |= {"outcome": "aggregated", "refused": list(refused)}
            append_json_line(folder / "rounds.jsonl", record | {"sites": dict.fromkeys(sites, exchange)})
        for place, site in enumerate(sites):
            rng = np.random.default_rng(place)
            options = {"multi_label": task == "multi_label"}
            rows = list_rows(rng, classes, patients, gains, split="test", **options)
            columns = prediction_columns(classes, tuple(subgroups or ()))
            if validation:
                rows += list_rows(rng, classes, validation, gains, split="validation", **options)
            for row in rows:
                patient = int(str(row["group"]).removeprefix("patient-"))
                row |= {f"{SUBGROUP_PREFIX}{column}": value(patient) for column, value in (subgroups or {}).items()}
            write_csv(folder / "sites" / site_folder(site) / "predictions.csv", rows, columns)
        write_json(
            folder / "report.json",
            {
                "schema": 1,
                "status": "done" if gains else "failed",
                "name": name,
                "run": "0123456789abcdef",
                "seed": 0,
                "rounds": rounds,
                "share": "prompts",
                "strategy": "fedavg",
                "classes": list(classes),
                "backbone": {"name": "test_vit", "digest": "d" * 64},
                "payload": {"layout": [["sinks", [6, 17]]], "hash": "h" * 64, "bytes": 408},
                "data": [
                    {"site": site, "split": "test", "class": label, "images": 2 * count, "groups": count}
                    for site in sites
                    for label, count in zip(classes, patients, strict=True)
                ],
                "notes": list(notes),
                "settings": list(gains),
                "test_images": dict.fromkeys(sites, 2 * sum(patients)),
                "traffic": {},
                "versions": {"ept_fed": "0.1.0"},
                "device": "cpu",
            },
        )
        return folder

    return make
