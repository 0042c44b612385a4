"""The chart of a benchmark shows every row of its summary, at the bytes that its method sends."""

from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from ept_fed.config.benchmark import SETTINGS
from simulations.benchmark.chart import draw_benchmark, pick_colours, plot_benchmark

NAN = float("nan")


def row(method: str, setting: str, mean: float, sent: int, *, shots: int | None = 5, sd: float = 0.1) -> dict[str, Any]:
    about = {"method": method, "shots": shots, "setting": setting, "metric": "accuracy"}
    return {**about, "mean": mean, "sd": sd, "bytes_per_round": sent}


SUMMARY = [
    row("ept", "local", 0.5, 0),
    row("ept", "federated", 0.6, 900),
    row("ept", "federated+head", 0.7, 70_000, sd=NAN),
    row("full", "federated", 0.8, 90_000_000),
    row("full", "centralised", 0.9, 0),
    row("full", "centralised-prompts", 0.85, 0),
    row("ept", "federated", 0.4, 900, shots=None),
    row("full", "federated", NAN, 90_000_000, shots=None),
    row("ept", "federated", 0.1, 900) | {"metric": "auc"},
]


def points(axes: Axes) -> set[tuple[float, float, str]]:
    bars = [bar for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
    return {(float(b[0].get_xdata()[0]), float(b[0].get_ydata()[0]), str(b[0].get_marker())) for b in bars}


def levels(axes: Axes) -> list[float]:
    return [float(line.get_ydata()[0]) for line in axes.lines if line.is_dashed()]


def test_bytes_are_on_a_logarithmic_axis_that_says_units() -> None:
    for axes in plot_benchmark(SUMMARY).axes:
        assert axes.get_xscale() == "log"
        told = axes.xaxis.get_major_formatter()
        assert [told(value, 0) for value in (10, 2e3, 1e6, 3e9)] == ["10 B", "2 kB", "1 MB", "3 GB"]


def test_what_sends_is_a_point_and_what_does_not_a_broken_line() -> None:
    five, everything = plot_benchmark(SUMMARY).axes
    assert (five.get_title(), everything.get_title()) == ("5 shots", "all images")
    assert points(five) == {(900, 0.6, "o"), (70_000, 0.7, "^"), (90_000_000, 0.8, "o")}
    assert levels(five) == [0.5, 0.9, 0.85]
    assert (points(everything), levels(everything)) == ({(900, 0.4, "o")}, [])
    assert points(plot_benchmark(SUMMARY, "auc").axes[0]) == {(900, 0.1, "o")}


def test_bars_are_a_standard_deviation_where_there_is_one() -> None:
    five, _ = plot_benchmark(SUMMARY).axes
    heights = [bar[2][0].get_segments()[0][:, 1].tolist() for bar in five.containers]
    assert heights == [pytest.approx([0.5, 0.7]), pytest.approx([0.7, 0.7]), pytest.approx([0.7, 0.9])]


def test_every_setting_has_a_place_and_a_method_one_colour() -> None:
    (axes,) = plot_benchmark([row("ept", setting, 0.5, 10) for setting in SETTINGS]).axes
    assert len(points(axes)) + len(levels(axes)) == len(SETTINGS)
    assert len({str(line.get_color()) for line in axes.lines if len(line.get_xdata())}) == 1


def test_it_is_written_as_png() -> None:
    assert draw_benchmark(SUMMARY).startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [0, 1, 10, 11, 20, 21, 200])
def test_every_method_has_a_colour_of_its_own(count: int) -> None:
    assert len(set(pick_colours(count))) == count
