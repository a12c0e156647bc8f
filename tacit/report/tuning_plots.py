"""Charts of a search: one dot for each trial. Drawn as `tacit.report.plots` draws: numbers and our own words only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from tacit.report.plots import COLOURS, FONT, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def progress_chart(values: Sequence[float | None], *, up: str, lower: bool) -> str:
    """Each trial's value, and the best so far.

    Args:
        values: in the order of the trials; None of one without.
        up: what the vertical axis shows.
        lower: whether less is better.
    """
    better = min if lower else max
    found = [(number, v) for number, v in enumerate(values, start=1) if v is not None]
    best = list(accumulate((v for _, v in found), better))

    def draw(axes: Axes) -> None:
        numbers, heights = [n for n, _ in found], [v for _, v in found]
        _dots(axes, numbers, heights)
        axes.plot(
            [*numbers, len(values)], [*best, *best[-1:]], color=COLOURS["gain"], linewidth=1.9,
            drawstyle="steps-post", label="best so far", zorder=9,
        )  # fmt: skip

    return drawing("progress", draw, across="trial", up=up)


def number_chart(
    name: str,
    xs: Sequence[float],
    ys: Sequence[float],
    best: int,
    *,
    up: str,
    log: bool,
    ticks: Sequence[float] = (),
) -> str:
    """What trials have reached against the numbers that they have tried.

    Args:
        name: distinguishes the ids of this chart.
        xs, ys: of each trial.
        best: place of the best one among them.
        up: what the vertical axis shows.
        log: whether the horizontal axis is logarithmic.
        ticks: the numbers, where they are few.
    """

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=_within_a_decade(xs)))
            axes.xaxis.set_minor_locator(NullLocator())
        if ticks:
            axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        _dots(axes, xs, ys)
        _star(axes, xs[best], ys[best])

    return drawing(name, draw, across="value", up=up, legend=False)


def word_chart(
    name: str, columns: Sequence[tuple[str, Sequence[float]]], best: float, at: int, *, up: str
) -> str:
    """What trials have reached with each of some values that are no numbers.

    Args:
        name: distinguishes the ids of this chart.
        columns: letter of each value, and what the trials with it have reached.
        best: what the best trial has reached.
        at: its column.
        up: what the vertical axis shows.
    """

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import FixedLocator

        for place, (_, values) in enumerate(columns):
            step = [place + 0.2 * ((7 * i % 11) / 5 - 1) for i in range(len(values))]
            _dots(axes, step, sorted(values))
        _star(axes, at, best)
        axes.xaxis.set_major_locator(FixedLocator(list(range(len(columns)))))
        axes.set_xticklabels([letter for letter, _ in columns], **FONT)
        axes.set_xlim(-0.6, max(1, len(columns)) - 0.4)

    return drawing(name, draw, across="value", up=up, legend=False)


def _within_a_decade(xs: Sequence[float]) -> tuple[float, ...]:
    """Which numbers of each power of ten stand below the axis: three or more, and not too many."""
    decades = math.log10(max(xs) / min(xs))
    return (1.0, 2.0, 5.0) if decades < 1.5 else (1.0, 3.0) if decades < 3 else (1.0,)


def _dots(axes: Any, xs: Sequence[float], ys: Sequence[float]) -> None:
    axes.plot(
        xs, ys, linestyle="", marker="o", markersize=5.5, color=COLOURS["s0"], alpha=0.6, markeredgewidth=0
    )


def _star(axes: Any, x: float, y: float) -> None:
    axes.plot([x], [y], linestyle="", marker="*", markersize=13, color=COLOURS["gain"], zorder=9)
