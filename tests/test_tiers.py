"""Tests of what holds for all tests: their tiers, what is built once, and the last lines about skipped tests."""

from pathlib import Path

import pytest

from tests.built_once import BuildOnce
from tests.needs import GPU
from tests.tiers import LONG, SHARED_DEPLOYMENT, place_of

pytest_plugins = ("pytester",)
ROOT = Path(__file__).resolve().parents[1]
START = {
    "a process": "import subprocess; subprocess.run(['true'], check=True)",
    "a fork": "import os; pid = os.fork() or os._exit(0); os.waitpid(pid, 0)",
    "a spawned process": "import multiprocessing as m; p = m.get_context('spawn').Process(); p.start(); p.join()",
    "a server's socket": "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.close()",
    "a client's socket": "import socket; s = socket.socket(socket.AF_UNIX); s.connect_ex('absent'); s.close()",
}


@pytest.fixture
def outcomes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Return a function that runs tests with the plugins of this suite and returns the outcomes and the output."""
    monkeypatch.syspath_prepend(ROOT)

    def run(text: str) -> tuple[dict[str, int], str]:
        pytester.makepyfile(text)
        done = pytester.runpytest_inprocess("-p", "tests.tiers", "-p", "tests.needs", "-p", "no:cacheprovider")
        return done.parseoutcomes(), done.stdout.str()

    return run


@pytest.mark.integration
@pytest.mark.parametrize("act", START.values(), ids=START)
def test_a_unit_test_that_starts_a_process_or_opens_a_socket_fails(outcomes, act: str) -> None:  # type: ignore[no-untyped-def]
    where = {
        "body": f"def test_it(): {act}",
        "fixture": f"import pytest\n@pytest.fixture(scope='module')\ndef it(): {act}\ndef test_it(it): pass",
        "other tier": f"import pytest\n@pytest.mark.integration\ndef test_it(): {act}",
    }
    assert outcomes(where["body"])[0] == {"failed": 1}
    assert outcomes(where["fixture"])[0] == {"errors": 1}
    assert outcomes(where["other tier"])[0] == {"passed": 1}


@pytest.mark.integration
def test_what_a_module_does_on_its_import_is_not_the_tests_doing(outcomes, pytester: pytest.Pytester) -> None:  # type: ignore[no-untyped-def]
    pytester.makepyfile(asks_the_system=START["a process"])
    pytester.syspathinsert()
    assert outcomes("def test_it(): import asks_the_system")[0] == {"passed": 1}


def test_every_test_has_one_tier_and_those_of_integration_run_first(outcomes) -> None:  # type: ignore[no-untyped-def]
    text = "import pytest\ndef test_a(request): assert [m.name for m in request.node.iter_markers()] == ['unit']\n"
    found, said = outcomes(text + "@pytest.mark.integration\ndef test_b(): raise ValueError\ndef test_c(): pass")
    assert found == {"passed": 2, "failed": 1}
    assert "F.." in said


def test_the_last_lines_count_what_was_skipped_and_say_how_to_run_it(outcomes) -> None:  # type: ignore[no-untyped-def]
    skips = [
        f"@pytest.mark.skip(reason={reason!r})\ndef test_{i}(): pass\n" for i, reason in enumerate([GPU.reason] * 2)
    ]
    _, said = outcomes("import pytest\n" + "".join(skips) + "def test_more(): pytest.skip('no reason of ours')")
    assert "2 tests were skipped for want of a GPU. To run them: run the tests on a machine with a CUDA" in said
    assert "1 test was skipped because: no reason of ours" in said
    assert "No test was skipped." in outcomes("def test_it(): pass")[1]


def test_what_is_built_once_is_the_same_folder_for_every_caller(build_once: BuildOnce) -> None:
    built: list[Path] = []
    first, second = (build_once("test-of-built-once", built.append) for _ in range(2))
    assert [first] == [second] == built
    with pytest.raises(ZeroDivisionError):
        build_once("test-of-a-failure", lambda _: 1 / 0)
    with pytest.raises(AssertionError, match="could not be built"):
        build_once("test-of-a-failure", built.append)


def test_the_shared_deployment_starts_before_every_other_file() -> None:
    ids = [
        f"{SHARED_DEPLOYMENT}test_x.py",
        "tests/end_to_end/test_parity.py",
        "tests/test_docs.py",
        "tests/test_words.py",
    ]
    assert [place_of(nodeid) for nodeid in ids] == [0, 1, 2, len(LONG)]
