"""Charts of a sweep: bands over seeds, dots of single runs and sites. Drawn as `tacit.report.plots` draws.

No text of an experiment is drawn: a group has a letter, a colour and a line style, and the page says which is which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from tacit.report.plots import COLOURS, FONT, blank_figure, dress, svg_of
from tacit.report.sweep_record import Band

SERIES: Final = 6  # colours that a reader can tell apart
STYLES: Final = ("-", "--", "-.", ":", "-", "--")
MARKERS: Final = ("o", "s", "^", "D", "v", "P")
_MOST_DOTS: Final = 400  # of one column


class Curve(NamedTuple):
    """One line: a band at each x, None where there is none."""

    xs: Sequence[float]
    bands: Sequence[Band | None]


class Level(NamedTuple):
    """A horizontal line: a colour of the page, and a word of ours."""

    value: float
    colour: str
    word: str


def band_chart(
    name: str,
    curves: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str,
    ticks: Sequence[tuple[float, str]],
    levels: Sequence[Level] = (),
    limits: tuple[float, float] = (-math.inf, math.inf),
    log: bool = False,
    from_zero: bool = False,
) -> str:
    """Means with confidence bands against a number.

    Args:
        name: distinguishes the ids of this chart.
        curves: at most `SERIES` of them are drawn.
        xlabel, ylabel: our own words.
        ticks: places on the horizontal axis and what stands there.
        levels: what to compare with.
        limits: of what is drawn: a band ends there, though an interval of Student's may go on.
        log: whether the horizontal axis is logarithmic.
        from_zero: whether the vertical axis starts at zero.
    """
    figure = blank_figure(5.4, 3.1)
    axes = figure.add_subplot()
    for number, curve in enumerate(curves[:SERIES]):
        found = [(x, b) for x, b in zip(curve.xs, curve.bands, strict=True) if b is not None]
        colour, xs = COLOURS[f"s{number}"], [x for x, _ in found]
        axes.plot(
            xs, [b.mean for _, b in found], color=colour, linestyle=STYLES[number], linewidth=1.8,
            marker=MARKERS[number], markersize=4.5, zorder=9,
        )  # fmt: skip
        banded = [(x, b.low, b.high) for x, b in found if b.low is not None and b.high is not None]
        if banded:
            low, high = ([min(max(b[i], limits[0]), limits[1]) for b in banded] for i in (1, 2))
            axes.fill_between(
                [b[0] for b in banded], low, high, color=colour, alpha=0.17, linewidth=0, zorder=3
            )
    for level in levels:
        style = "--" if level.colour == "pooled" else ":"
        axes.axhline(
            level.value,
            color=COLOURS[level.colour],
            linestyle=style,
            linewidth=1.5,
            label=level.word,
            zorder=2,
        )
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, limits[0] - 0.02), min(top, limits[1] + 0.02))  # room for a mark at the end
    if log:
        axes.set_xscale("log")
    dress(axes, legend=bool(levels), from_zero=from_zero, xlabel=xlabel)
    _ticks(axes, ticks)
    axes.set_ylabel(ylabel, color=COLOURS["ink"], **FONT)
    return svg_of(figure, name)


def _ticks(axes: Any, ticks: Sequence[tuple[float, str]]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.xaxis.set_major_locator(FixedLocator([x for x, _ in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([text for _, text in ticks])


class Column(NamedTuple):
    """Dots above one tick: the values, their mean, and the tick's text."""

    text: str
    values: Sequence[float]
    band: Band | None


def dot_chart(name: str, columns: Sequence[Column], *, xlabel: str, ylabel: str) -> str:
    """Each run as a dot, with the mean and its interval: nothing hides behind a bar."""
    from matplotlib.ticker import MaxNLocator

    figure = blank_figure(5.4, 3.1)
    axes = figure.add_subplot()
    for place, column in enumerate(columns):
        _dots(axes, place, column.values, COLOURS["s0"], "o", 0.55)
        _interval(axes, place, column.band)
    _finish(axes, columns, xlabel, ylabel)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_ylim(0, max([1.0, *(v for c in columns for v in c.values)]) * 1.1)
    return svg_of(figure, name)


def gain_chart(name: str, columns: Sequence[Column], *, xlabel: str, ylabel: str) -> str:
    """Each site as a mark: an upward triangle where it gains, a downward one where it loses."""
    figure = blank_figure(5.4, 3.1)
    axes = figure.add_subplot()
    axes.axhline(0.0, color=COLOURS["ink"], linewidth=1.0, zorder=2)
    for place, column in enumerate(columns):
        _dots(axes, place, [v for v in column.values if v > 0], COLOURS["gain"], "^", 0.6)
        _dots(axes, place, [v for v in column.values if v == 0], COLOURS["ink"], "o", 0.35)
        _dots(axes, place, [v for v in column.values if v < 0], COLOURS["loss"], "v", 0.8)
        _interval(axes, place, column.band)
    _finish(axes, columns, xlabel, ylabel)
    return svg_of(figure, name)


def _dots(axes: Any, place: int, values: Sequence[float], colour: str, marker: str, alpha: float) -> None:
    """Beside each other where they would lie on top of each other, in the order of their values."""
    step = max(1, -(-len(values) // _MOST_DOTS))
    ordered = sorted(values)[::step]
    xs = [place + 0.26 * ((7 * i % 11) / 5 - 1) for i in range(len(ordered))]
    axes.plot(
        xs, ordered, linestyle="", marker=marker, markersize=5.5, color=colour, alpha=alpha, markeredgewidth=0
    )


def _interval(axes: Any, place: int, band: Band | None) -> None:
    if band is None:
        return
    axes.plot([place - 0.34, place + 0.34], [band.mean] * 2, color=COLOURS["ink"], linewidth=2.0, zorder=8)
    if band.low is not None and band.high is not None:
        axes.plot([place + 0.38] * 2, [band.low, band.high], color=COLOURS["ink"], linewidth=1.2, zorder=8)


def _finish(axes: Any, columns: Sequence[Column], xlabel: str, ylabel: str) -> None:
    dress(axes, legend=False, from_zero=False, xlabel=xlabel)
    _ticks(axes, [(place, column.text) for place, column in enumerate(columns)])
    axes.set_xlim(-0.6, max(1, len(columns)) - 0.4)
    axes.set_ylabel(ylabel, color=COLOURS["ink"], **FONT)
