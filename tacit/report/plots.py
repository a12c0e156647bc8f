"""Line charts as inline SVG whose colours are the page's CSS variables: they follow light, dark and print.

Figures are made without pyplot: nothing global is touched, and two threads may draw at once. No text of an
experiment is drawn, only numbers and our own words, so a chart needs no font but matplotlib's own.
"""

from __future__ import annotations

import atexit
import io
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from tacit.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A colour stands for one CSS variable of the page. The first three are Okabe and Ito's, which colour-blind
# readers can tell apart; each also has a line style of its own, for paper.
COLOURS = {
    "federated": "#0072b2",
    "pooled": "#d55e00",
    "local": "#009e73",
    "ink": "#123456",
    "grid": "#abcdef",
    "s0": "#0a0b01", "s1": "#0a0b02", "s2": "#0a0b03", "s3": "#0a0b04", "s4": "#0a0b05", "s5": "#0a0b06",
    "gain": "#0a0b07", "loss": "#0a0b08",
}  # fmt: skip
_STYLES = {"federated": "-", "pooled": "--", "local": ":", "ink": "-"}
FONT: dict[str, Any] = {"family": "DejaVu Sans", "size": 9}


class Line(NamedTuple):
    """One line: a value per round, None leaves a gap; or a `reference`, one value all the way across."""

    label: str
    colour: str
    ys: Sequence[float | None]
    reference: bool = False


def line_chart(name: str, lines: Sequence[Line], *, rounds: Sequence[int], from_zero: bool = False) -> str:
    """An `<svg>` element for an HTML page.

    Args:
        name: distinguishes the ids of this chart from those of others on the page.
        lines: what is drawn, first on top.
        rounds: round numbers, the horizontal axis.
        from_zero: whether the vertical axis starts at zero.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = blank_figure()
    axes = figure.add_subplot()
    for rank, line in enumerate(lines):
        style: dict[str, Any] = {
            "color": COLOURS[line.colour],
            "linestyle": _STYLES[line.colour],
            "label": line.label,
        }
        if line.reference:
            axes.axhline(_height(line.ys[0]), linewidth=1.6, zorder=4 - rank, **style)
        else:
            marker = "o" if len(rounds) <= 30 else ""
            heights = [_height(y) for y in line.ys]
            axes.plot(rounds, heights, linewidth=1.8, marker=marker, markersize=3.2, zorder=9, **style)
    dress(axes, legend=len(lines) > 1, from_zero=from_zero)
    return svg_of(figure, name)


def svg_of(figure: Figure, name: str) -> str:
    """A figure as an `<svg>` element; `name` distinguishes its ids from those of other charts on the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue(), name)


def drawing(
    name: str, draw: Callable[[Axes], None], *, across: str, up: str = "", legend: bool = True
) -> str:
    """An `<svg>` element of anything else: the caller draws, in colours of `COLOURS`.

    Args:
        name: distinguishes the ids of this chart from those of others on the page.
        draw: gets axes that are dressed as those of `line_chart`.
        across: what the horizontal axis shows.
        up: what the vertical one shows.
        legend: whether there is one.
    """
    figure = blank_figure()
    axes = figure.add_subplot()
    dress(axes, legend=False, from_zero=False)
    axes.set_xlabel(across, color=COLOURS["ink"], **FONT)
    axes.set_ylabel(up, color=COLOURS["ink"], **FONT)
    draw(axes)
    axes.tick_params(which="both", colors=COLOURS["ink"], length=0, labelfontfamily=FONT["family"])
    if legend:
        _legend(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue(), name)


def _height(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else value


def blank_figure(width: float = 4.6, height: float = 2.7) -> Figure:
    """An empty figure of so many inches, drawn by nobody's screen."""
    if "MPLCONFIGDIR" not in os.environ and not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ["MPLCONFIGDIR"] = _temporary_folder()
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("a report with plots", "simulation") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@cache
def _temporary_folder() -> str:
    """Where matplotlib keeps its font list when the home folder is read-only; gone when the process ends."""
    folder = tempfile.mkdtemp(prefix="tacit-matplotlib-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def dress(axes: Axes, *, legend: bool, from_zero: bool, xlabel: str = "round") -> None:
    """Axes, grid and legend: quiet, and in colours of the page."""
    from matplotlib.ticker import MaxNLocator

    ink, grid = COLOURS["ink"], COLOURS["grid"]
    axes.set_facecolor("none")
    axes.grid(axis="y", color=grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(ink)
    axes.tick_params(colors=ink, length=0, labelsize=FONT["size"], labelfontfamily=FONT["family"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlabel(xlabel, color=ink, **FONT)
    if from_zero:
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    if legend:
        _legend(axes)


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, labelcolor=COLOURS["ink"], prop=FONT,
        handlelength=2.2, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip


def _inline(svg: str, name: str) -> str:
    """Cuts an SVG file down to an element for HTML: no addresses, own ids, colours as variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = (
        re.sub(r' (?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", svg[: svg.index(">")])
        + svg[svg.index(">") :]
    )
    known: dict[str, str] = {}
    for identifier in re.findall(r'\bid="([^"]+)"', svg):
        known.setdefault(identifier, f"{name}-{len(known)}")
    svg = re.sub(r'\bid="([^"]+)"', lambda m: f'id="{known[m[1]]}"', svg)
    svg = re.sub(r'(href="|url\()#([^")]+)', lambda m: f"{m[1]}#{known[m[2]]}", svg)
    svg = svg.replace("xlink:href", "href")
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg", '<svg aria-hidden="true"', 1)
