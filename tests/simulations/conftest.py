"""Runs and benchmarks leave their charts out, except for tests that use `drawn` because they look at pictures.

The tests of the commands compare whole pages, so their charts are drawn.
"""

import pytest

CHARTS = (
    "run.draw_benchmark",
    "analysis.folder.draw_features",
    "analysis.folder.draw_overview",
    "analysis.folder.draw_scaling",
)


@pytest.fixture
def drawn() -> None:
    """Have charts drawn."""


@pytest.fixture(autouse=True)
def _undrawn_by_default(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" in request.fixturenames or request.path.parent.name == "cli":
        return
    request.getfixturevalue("undrawn")
    for chart in CHARTS:
        monkeypatch.setattr(f"simulations.benchmark.{chart}", lambda *_arguments, **_options: b"")
