"""`ept-fed benchmark` on the command line."""

import json
import re
import subprocess
import sys
from pathlib import Path

from simulations.cli.benchmark import EXAMPLES

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
    assert "Effect of tuning on the features: results/analysis.html" in done.stdout
    again = run(str(micro_file), *SMALL, *one_round, "--out", "results", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert (report["cells"], report["trained"]) == (2, 0)
    more = run(str(micro_file), "--method", "bias", *SMALL[4:], *one_round, "--out", "results", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "1 of 1 cells" in more.stdout
    assert all(f" {method} " in more.stdout for method in ("ept", "linear", "bias"))
    refused = run(str(micro_file), *SMALL, "--out", "results", cwd=tmp_path)
    assert refused.returncode == 2
    assert "federation.rounds = 2: the results in results have 1" in refused.stderr


def test_a_row_without_a_partner_has_no_difference(micro_file: Path, tmp_path: Path) -> None:
    one = ("--method", "linear", "--setting", "local", "--seeds", "1", "--set", "federation.rounds=1")
    alone = run(str(micro_file), *one, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    (row,) = (line for line in alone.stdout.splitlines() if line.startswith("│ linear"))
    assert [cell.strip() for cell in row.strip("│").split("│")][5:] == ["", "1"]


def test_an_example_names_no_folder_that_the_repository_has() -> None:
    (named,) = re.findall(r"--out (\S+)", EXAMPLES)
    tracked = {path.name for path in Path(__file__).resolve().parents[3].iterdir()} - {"out"}
    assert Path(named).parts[0] not in tracked


def test_an_unknown_method_is_answered_with_the_known(micro_file: Path, tmp_path: Path) -> None:
    refused = run(str(micro_file), "--method", "ept", "--method", "lorra", cwd=tmp_path)
    assert refused.returncode == 2
    assert "did you mean 'lora'?" in refused.stderr
    assert not (tmp_path / "benchmarks").exists()
