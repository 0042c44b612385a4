"""Test of a federation with real dermoscopy images and a real backbone; skipped if ../shared does not have them."""

import json
from pathlib import Path

import pytest

from ept_fed.progress import Silent
from ept_fed.validation.load_experiment import load_experiment
from simulations.engine.simulate import simulate
from tests.needs import REAL_DATA, SHARED

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = SHARED / "weights" / "dinov2_vits14_518_fp16.safetensors"


@pytest.mark.integration
@pytest.mark.shared
@REAL_DATA.mark
def test_four_real_sites_federate_on_real_images(tmp_path: Path) -> None:
    overrides = [
        f"data.root={SHARED / 'data'}",
        f"model.weights={WEIGHTS}",
        "data.shots=1",
        "data.validation_shots=1",
        "data.validation_fraction=0.5",
        "data.test_fraction=0.02",
        "federation.rounds=1",
        "evaluation.baselines=[]",
    ]
    report = simulate(load_experiment(ROOT / "configs" / "ham10000.yaml", overrides), tmp_path / "run", Silent())
    assert report["status"] == "done"
    sites = {"rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias"}
    assert set(report["test"]["federated"]) == sites
    L, N, T, D = 4, 37, 32, 384
    assert report["payload"]["bytes"] == 4 * L * N + 4 * L * T * (D + 1)
    assert any("has no akiec" in note for note in report["notes"])
    line = json.loads((tmp_path / "run" / "rounds.jsonl").read_text())
    assert set(line["aggregated"]) == sites
