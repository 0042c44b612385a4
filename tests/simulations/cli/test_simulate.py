"""`ept-fed simulate` on the command line: it runs as a process of its own, with its exit code and output."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "ept_fed.cli"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def test_a_run_prints_rounds_table_and_where_to_look(micro_file: Path, tmp_path: Path) -> None:
    done = run("simulate", str(micro_file), "--out", "out", "--set", "federation.rounds=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "federated 1/1" in done.stdout
    for word in ("local", "federated", "site-3", "mean over sites", "Open out/report.html"):
        assert word in done.stdout
    for name in ("report.json", "report.html", "sites/site-1/report.html"):
        assert (tmp_path / "out" / name).exists()


def test_json_is_one_document_and_nothing_else(micro_file: Path, tmp_path: Path) -> None:
    done = run("simulate", str(micro_file), "--json", "--set", "evaluation.baselines=[]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["status"] == "done"
    assert Path(tmp_path / report["folder"] / "rounds.jsonl").exists()


def test_refusals_list_everything_and_exit_with_2(micro_file: Path, tmp_path: Path) -> None:
    arguments = ("simulate", str(micro_file), "--out", "out", "--set", "data.shots=0", "--set", "modle.tokens=1")
    refused = run(*arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert "2 problems" in refused.stderr
    assert "data.shots = 0" in refused.stderr
    assert "did you mean 'model'?" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()
    as_json = run(*arguments, "--json", cwd=tmp_path)
    assert as_json.returncode == 2
    assert {problem["field"] for problem in json.loads(as_json.stdout)["problems"]} == {"data.shots", "modle"}


def test_a_failed_run_exits_with_1(micro_file: Path, tmp_path: Path) -> None:
    settings = ("--set", "training.head_lr=1.0e+30", "--set", "training.epochs=3", "--set", "federation.rounds=1")
    failed = run("simulate", str(micro_file), "--out", "out", *settings, cwd=tmp_path)
    assert failed.returncode == 1
    assert "no round could be averaged" in failed.stdout
    assert "lower the learning rates" in failed.stdout


@pytest.mark.parametrize("arguments", [("simulate", "x.yaml", "--nonsense"), ("simulate", "absent.yaml"), ("conquer",)])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert run(*arguments, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("verb", [(), ("simulate",)])
def test_help_ends_with_two_examples(verb: tuple[str, ...], tmp_path: Path) -> None:
    shown = run(*verb, "--help", cwd=tmp_path)
    assert shown.returncode == 0
    examples = shown.stdout[shown.stdout.index("Examples:") :]
    assert examples.count("ept-fed simulate") >= 2


def test_the_version_is_printed(tmp_path: Path) -> None:
    import ept_fed

    assert run("--version", cwd=tmp_path).stdout.strip() == f"ept-fed {ept_fed.__version__}"
