"""`ept-fed benchmark` as a person types it."""

import json
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "ept_fed.cli", "benchmark"]
SMALL = ("--method", "ept", "--method", "linear", "--setting", "federated+head", "--seeds", "1")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def test_a_grid_prints_cells_and_table_and_goes_on_where_it_stopped(micro_file: Path, tmp_path: Path) -> None:
    one_round = ("--set", "federation.rounds=1")
    done = run(str(micro_file), *SMALL, *one_round, "--out", "results", "--analyse", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for said in ("1/2 ept, 2 shots, seed 0, federated+head: AUC", "about 0:00 left", "Δ ept", "2 of 2 cells"):
        assert said in done.stdout
    assert "What tuning did to the features: results/analysis.html" in done.stdout
    again = run(str(micro_file), *SMALL, *one_round, "--out", "results", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert (report["cells"], report["trained"]) == (2, 0)
    refused = run(str(micro_file), *SMALL, "--out", "results", cwd=tmp_path)
    assert refused.returncode == 2
    assert "federation.rounds = 2: the results in results have 1" in refused.stderr


def test_an_unknown_method_is_answered_with_the_known(micro_file: Path, tmp_path: Path) -> None:
    refused = run(str(micro_file), "--method", "ept", "--method", "lorra", cwd=tmp_path)
    assert refused.returncode == 2
    assert "did you mean 'lora'?" in refused.stderr
    assert not (tmp_path / "benchmarks").exists()
