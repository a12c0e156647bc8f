"""Pictures of a model's counted outcomes: curves, calibration, rates by group; the confusion matrix is a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tacit.report.plots import COLOURS, drawing
from tacit.report.record import Outcomes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 12  # of a confusion matrix on the page


class Picture(NamedTuple):
    """A chart and the title above it."""

    title: str
    svg: str


class Shown(NamedTuple):
    """One model's outcomes as the page shows them."""

    outcomes: Outcomes
    mark: str
    title: str
    pictures: list[Picture]
    rows: list[tuple[str, list[tuple[float, float]]]]  # truth, then count and share of the row


def shown(outcomes: Outcomes, mark: str, title: str, name: str) -> Shown:
    """What the page needs; `name` distinguishes the charts' ids."""
    rows = []
    if outcomes.confusion and len(outcomes.classes) <= MOST_CLASSES:
        for truth, counts in zip(outcomes.classes, outcomes.confusion, strict=True):
            total = sum(counts) or 1.0
            rows.append((truth, [(count, count / total) for count in counts]))
    return Shown(outcomes, mark, title, list(_pictures(outcomes, name)), rows)


def _pictures(outcomes: Outcomes, name: str) -> list[Picture]:
    found = []
    if outcomes.roc[0]:
        svg = _line(f"{name}-roc", outcomes.roc, "false positive rate", "true positive rate", "a coin")
        found.append(Picture("ROC curve", svg))
    if outcomes.precision_recall[0]:
        svg = _line(f"{name}-pr", outcomes.precision_recall, "recall", "precision")
        found.append(Picture("Precision and recall", svg))
    if outcomes.reliability[0]:
        svg = _line(
            f"{name}-calibration", outcomes.reliability, "probability said", "share that came true", "perfect"
        )
        found.append(Picture("Calibration", svg))
    rates = [
        m for m in ("selected", "recall", "false_alarms") if any(m in g.metrics for g in outcomes.groups)
    ]
    if rates:
        found.append(Picture(f"By {outcomes.column}", _groups(f"{name}-groups", outcomes, rates)))
    return found


def _line(
    name: str, curve: tuple[Sequence[float], Sequence[float]], across: str, up: str, diagonal: str = ""
) -> str:
    def draw(axes: Axes) -> None:
        style: dict[str, Any] = {"marker": "o", "markersize": 3.2, "linewidth": 1.8}
        axes.plot(*curve, color=COLOURS["federated"], label="model", **style)
        if diagonal:
            axes.plot([0, 1], [0, 1], "--", color=COLOURS["pooled"], label=diagonal)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xticks(np.linspace(0, 1, 6))

    return drawing(name, draw, across=across, up=up, legend=bool(diagonal))


def _groups(name: str, outcomes: Outcomes, rates: Sequence[str]) -> str:
    """Groups are numbered as in the table beside it: no text of an experiment is drawn."""

    def draw(axes: Axes) -> None:
        places = np.arange(1, len(outcomes.groups) + 1)
        width = 0.8 / len(rates)
        for i, (rate, colour) in enumerate(zip(rates, ("federated", "pooled", "local"), strict=False)):
            heights = [float(group.metrics.get(rate) or 0.0) for group in outcomes.groups]
            label = rate.replace("_", " ")
            axes.bar(
                places + (i - (len(rates) - 1) / 2) * width,
                heights,
                width,
                color=COLOURS[colour],
                label=label,
            )
        axes.set_ylim(0, 1.02)
        axes.set_xticks(places)

    return drawing(name, draw, across="group, as numbered in the table")
