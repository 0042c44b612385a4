"""The two tiers of `make test`, kept honest: a unit test that starts a process or opens a socket fails.

unit: neither process nor socket, and no test that takes seconds; `make quick` runs these alone.
integration: real processes, sockets, TLS, a browser, kills, and whole federations that take seconds.
"""

import sys
from collections.abc import Generator
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# One deployment serves every test below this folder, so all of them run in one test process.
SHARED_DEPLOYMENT = "tests/end_to_end/deployment/"
# How long a test process needs for all tests of a file: what takes longest starts first, so that none waits at the end.
LONG = (
    SHARED_DEPLOYMENT,
    "tests/end_to_end/",
    "tests/test_docs.py",
    "tests/simulations/benchmark/test_workers.py",
    "tests/simulations/engine/test_choice.py",
)

_EVENTS = {
    "subprocess.Popen": "started a process",
    "multiprocessing.start": "started a process",
    "os.system": "started a process",
    "os.fork": "started a process",
    "os.forkpty": "started a process",
    "os.posix_spawn": "started a process",
    "socket.connect": "opened a socket",
    "socket.bind": "opened a socket",
}
_seen: list[str] | None = None


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and event in _EVENTS and not _is_import():
        _seen.append(f"{_EVENTS[event]}: {event}{str(arguments)[:200]}")


def _is_import() -> bool:
    """Whether a module is being imported; some ask the system about itself, which is not the test's doing."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
    return False


sys.addaudithook(_listen)


def _start(process: BaseProcess) -> None:
    """Start a process of multiprocessing, which raises no audit event."""
    sys.audit("multiprocessing.start", process.name)
    _start_silently(process)


_start_silently = BaseProcess.start
BaseProcess.start = _start  # type: ignore[method-assign]


def watched(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail one phase of a unit test if it starts a process or opens a socket; its fixtures are part of the phase."""
    global _seen  # noqa: PLW0603 - an audit hook stays for good and is given nothing but the event
    if tier_of(item) != "unit":
        return (yield)
    _seen = []
    try:
        return (yield)
    finally:
        seen, _seen = _seen, None
        if seen:
            pytest.fail(f"this is a unit test, but it {'; '.join(seen)}. Mark it with pytest.mark.integration")


pytest_runtest_setup = pytest.hookimpl(wrapper=True, tryfirst=True)(watched)
pytest_runtest_call = pytest.hookimpl(wrapper=True, tryfirst=True)(watched)


def tier_of(item: pytest.Item) -> str:
    return next((tier for tier in ("faults", "integration") if item.get_closest_marker(tier)), "unit")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its tier, and run the longest integration tests first; the order within a file stays."""
    for item in items:
        if tier_of(item) == "unit":
            item.add_marker(pytest.mark.unit)
    items.sort(key=lambda item: (tier_of(item) == "unit", place_of(item.nodeid)))


def place_of(nodeid: str) -> int:
    return next((place for place, start in enumerate(LONG) if nodeid.startswith(start)), len(LONG))


class OneProcessPerFile(LoadFileScheduling):
    """Gives all tests of a file to one test process, so that no fixture of a module is built twice."""

    def _split_scope(self, nodeid: str) -> str:
        return SHARED_DEPLOYMENT if nodeid.startswith(SHARED_DEPLOYMENT) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneProcessPerFile | None:
    return OneProcessPerFile(config, log) if config.getvalue("dist") == "loadfile" else None
