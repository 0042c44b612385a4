"""Charts as SVG text for inline use in a page, without pyplot, global state, external fonts or links."""

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ept_fed.evaluation.calibration import ReliabilityBin
from ept_fed.evaluation.metrics import Array

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

__all__ = [
    "class_style",
    "draw_confusion",
    "draw_learning",
    "draw_reliability",
    "draw_roc",
    "setting_style",
    "shorten",
    "styled",
]

# Colours of Okabe and Ito with a contrast of 3:1 on white; dashes distinguish the settings without colour.
_STYLES: Mapping[str, tuple[str, tuple[float, ...] | None, str]] = {
    "federated": ("#0072B2", None, "o"),
    "local": ("#D55E00", (4, 2), "s"),
    "centralised": ("#4d4d4d", (1, 1.5), "^"),
    "fine-tuned": ("#00795a", (5, 1.5, 1, 1.5), "D"),
    "interpolated": ("#a2436e", (3, 1, 1, 1, 1, 1), "P"),
    "ditto": ("#6b6100", (7, 2), "X"),
}
_OTHER = ("#7a4988", (2, 2), "v")
_FAINT = "#b8bec6"
_INK = "#1f2933"

_SETTINGS: dict["RcKeyType", Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ept-fed",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#7b8794",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
}


_Arguments = ParamSpec("_Arguments")
_Drawn = TypeVar("_Drawn")


def styled(draw: Callable[_Arguments, _Drawn]) -> Callable[_Arguments, _Drawn]:
    """Decorate a function to draw with this module's settings, independent of the process's own, which are restored."""

    @functools.wraps(draw)
    def drawn(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Drawn:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_SETTINGS)
            return draw(*arguments, **options)

    return drawn


def setting_style(setting: str) -> tuple[str, tuple[float, ...] | None, str]:
    """Return the colour, dashes (None: solid) and marker of a setting; they are the same in every chart."""
    return _STYLES.get(setting, _OTHER)


def class_style(place: int) -> tuple[str, tuple[float, ...] | None, str]:
    """Return the colour, dashes and marker of the class at an index; the first 49 styles are different."""
    styles = (*_STYLES.values(), _OTHER)
    lap, at = divmod(place, len(styles))
    _, dashes, marker = styles[(at + lap) % len(styles)]
    return styles[at][0], dashes, marker


@styled
def draw_learning(rounds: Sequence[int], losses: Array, aucs: Array, name: str) -> str:
    """Draw training loss and validation AUC by round, with one faint line per site and a strong line for the median.

    losses and aucs are (rounds, sites). With a single site, only its line is drawn.
    """
    figure = Figure(figsize=(7.2, 2.3))
    axes = figure.subplots(1, 2)
    for axis, values, title in zip(axes, (losses, aucs), ("Training loss", "Validation AUC"), strict=True):
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("round")
        _draw_lines(axis, rounds, values)
    return _to_svg(figure, name)


@styled
def draw_roc(
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]], classes: Sequence[str], name: str, maximum: int = 12
) -> str:
    """Draw a small ROC panel for each of the first `maximum` classes with a curve; return "" if no class has one."""
    shown = [c for c in range(len(classes)) if any(curve[c] for curve in curves.values())][:maximum]
    if not shown:
        return ""
    columns = min(4, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(1.85 * columns + 0.2, 1.95 * lines + 0.45))
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, c in zip(panels, shown, strict=False):
        panel.plot([0, 1], [0, 1], color=_FAINT, linewidth=0.8)
        for setting, curve in curves.items():
            if curve[c]:
                _plot(panel, setting, [x for x, _ in curve[c]], [y for _, y in curve[c]], markers=False)
        panel.set_title(shorten(classes[c]), fontsize=9, loc="left")
        panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=[0, 1], yticks=[0, 1])
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    figure.supxlabel("1 − specificity", fontsize=9)
    figure.supylabel("sensitivity", fontsize=9)
    return _to_svg(figure, name)


@styled
def draw_reliability(curves: Mapping[str, Sequence[ReliabilityBin]], name: str, *, multi_label: bool) -> str:
    """Draw the observed share against the confidence; on the diagonal, 70 % confidence is right in 70 of 100 cases."""
    figure = Figure(figsize=(3.5, 3.2))
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=_FAINT, linewidth=0.8)
    for setting, curve in curves.items():
        _plot(axis, setting, [part.confidence for part in curve], [part.observed for part in curve], markers=True)
    axis.set(xlim=(0, 1), ylim=(-0.02, 1.02), aspect="equal")
    axis.set_xlabel("predicted probability" if multi_label else "confidence of the predicted class")
    axis.set_ylabel("share with the class" if multi_label else "share of correct predictions")
    return _to_svg(figure, name)


@styled
def draw_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], name: str) -> str:
    """Draw a confusion matrix (C, C) with counts in the cells; the shade is the share of the true class (row)."""
    C = len(classes)
    side = max(2.8, min(7.0, 0.46 * C + 1.0))
    figure = Figure(figsize=(side, side))
    axis = figure.subplots()
    totals = [max(sum(row), 1) for row in counts]
    shares = [[count / total for count in row] for row, total in zip(counts, totals, strict=True)]
    axis.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1.15, edgecolors="#e4e7eb", linewidth=0.5)
    axis.set(aspect="equal", ylim=(C, 0))
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            color = "white" if shares[i][j] > 0.8 else (_INK if count else "#6b7785")
            axis.text(j + 0.5, i + 0.5, str(count), ha="center", va="center", fontsize=8 if C <= 12 else 6, color=color)
    places, names = [i + 0.5 for i in range(C)], [shorten(label) for label in classes]
    axis.set_xticks(places, names, rotation=45 if max(map(len, names)) > 3 else 0, ha="right", rotation_mode="anchor")
    axis.set_yticks(places, names)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    return _to_svg(figure, name)


def _draw_lines(axis: Axes, rounds: Sequence[int], values: Array) -> None:
    strong, marker = setting_style("federated")[0], "o" if len(rounds) <= 30 else ""
    alone = values.shape[1] == 1
    for site in range(values.shape[1]):
        # Rounds without a value are skipped and not drawn as gaps, because a run may evaluate only every fifth round.
        known = [(r, float(x)) for r, x in zip(rounds, values[:, site], strict=True) if not math.isnan(x)]
        _line(axis, known, strong if alone else _FAINT, 1.6, marker if alone else "")
    if not alone:
        defined = [(r, [x for x in row if not math.isnan(x)]) for r, row in zip(rounds, values.tolist(), strict=True)]
        _line(axis, [(r, median(row)) for r, row in defined if row], strong, 2.0, marker)
    if len(rounds):
        axis.set_xlim(min(rounds) - 0.3, max(rounds) + 0.3)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _line(axis: Axes, points: Sequence[tuple[int, float]], color: str, width: float, marker: str) -> None:
    axis.plot([x for x, _ in points], [y for _, y in points], color=color, linewidth=width, marker=marker, ms=3)


def _plot(axis: Axes, setting: str, x: Sequence[float], y: Sequence[float], *, markers: bool) -> None:
    color, dashes, marker = setting_style(setting)
    (line,) = axis.plot(x, y, color=color, linewidth=1.6, marker=marker if markers else "", ms=4)
    if dashes is not None:
        line.set_dashes(dashes)


def shorten(label: str, maximum: int = 16) -> str:
    """Return a label, cut to the maximum length that fits next to an axis."""
    return label if len(label) <= maximum else label[: maximum - 1] + "…"


def _to_svg(figure: Figure, name: str) -> str:
    """Return the figure as one <svg> element; ids start with `name`, so that charts on one page do not conflict."""
    buffer = io.StringIO()
    figure.set_layout_engine("constrained")
    figure.patch.set(facecolor="none", edgecolor="none")
    for axis in figure.axes:
        axis.patch.set_facecolor("none")
        axis.tick_params(labelsize=8)
    # savefig would draw everything a second time to compute the layout.
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r"<[^>]+>", lambda tag: _rename(tag.group(), name), text).strip()


def _rename(tag: str, name: str) -> str:
    # An HTML parser does not need the namespaces, and the page must not contain any addresses.
    tag = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", tag)
    tag = re.sub(r'\sid="', f' id="{name}-', tag)
    return re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", tag)
