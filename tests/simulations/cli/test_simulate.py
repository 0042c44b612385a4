"""`ept-fed simulate` on the command line; `test_json_is_one_document_and_nothing_else` starts the true process."""

import json
from pathlib import Path

import pytest

from tests.command_line import call, start

SMALL = ("--set", "federation.rounds=1", "--set", "data.phantom_sites=2")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.integration
def test_json_is_one_document_and_nothing_else(micro_file: Path, tmp_path: Path) -> None:
    done = start("simulate", micro_file, *SMALL, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["status"] == "done"
    for name in ("rounds.jsonl", "report.json", "report.html", "sites/site-1/report.html"):
        assert (tmp_path / report["folder"] / name).exists()


@pytest.mark.usefixtures("undrawn")
def test_a_run_prints_rounds_table_and_where_to_look(micro_file: Path) -> None:
    done = call("simulate", micro_file, *SMALL, "--out", "out")
    assert done.exit_code == 0, done.stderr
    assert "federated 1/1" in done.stdout
    for word in ("local", "federated", "site-2", "mean over sites", "Open out/report.html"):
        assert word in done.stdout
    for name in ("report.json", "report.html", "sites/site-1/report.html"):
        assert Path("out", name).exists()


def test_refusals_list_everything_and_exit_with_2(micro_file: Path) -> None:
    arguments = ("simulate", micro_file, "--out", "out", "--set", "data.shots=0", "--set", "modle.tokens=1")
    refused = call(*arguments)
    assert refused.exit_code == 2
    assert "2 problems" in refused.stderr
    assert "data.shots = 0" in refused.stderr
    assert "did you mean 'model'?" in refused.stderr
    assert refused.stdout == ""
    assert not Path("out").exists()
    as_json = call(*arguments, "--json")
    assert as_json.exit_code == 2
    assert {problem["field"] for problem in json.loads(as_json.stdout)["problems"]} == {"data.shots", "modle"}


def test_a_run_that_every_sites_policy_refuses_exits_with_1_and_names_the_rule(micro_file: Path) -> None:
    Path("policy.yaml").write_text("schema: 1\n")
    refused = call("simulate", micro_file, "--out", "out", *SMALL, "--policy", "policy.yaml")
    assert refused.exit_code == 1
    said = " ".join(refused.stdout.split())
    assert "site-1 refuses the run: the site's gate refuses it: incoming.backbone" in said
    assert "sites refuse the run" in said


def test_a_failed_run_exits_with_1(micro_file: Path) -> None:
    settings = ("--set", "training.head_lr=1.0e+30", "--set", "training.epochs=3")
    failed = call("simulate", micro_file, "--out", "out", *SMALL, *settings)
    assert failed.exit_code == 1
    assert "no round could be averaged" in failed.stdout
    assert "lower the learning rates" in failed.stdout


@pytest.mark.parametrize("arguments", [("simulate", "x.yaml", "--nonsense"), ("simulate", "absent.yaml"), ("conquer",)])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert call(*arguments).exit_code == 2


@pytest.mark.parametrize("verb", [(), ("simulate",)])
def test_help_ends_with_two_examples(verb: tuple[str, ...]) -> None:
    shown = call(*verb, "--help")
    assert shown.exit_code == 0
    examples = shown.stdout[shown.stdout.index("Examples:") :]
    assert examples.count("ept-fed simulate") >= 2


def test_the_version_is_printed() -> None:
    import ept_fed

    assert call("--version").stdout.strip() == f"ept-fed {ept_fed.__version__}"
