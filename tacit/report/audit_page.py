"""The page of a privacy audit: measured beside claimed, with the scores that the figures come from.

Self-contained, without scripts, readable offline and on paper, like the page of a run.
"""

from __future__ import annotations

import math
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tacit.report.audit_record import Attack, AuditRecord, Image, Inversion
from tacit.report.html import Chart, pages, seconds
from tacit.report.plots import COLOURS, drawing
from tacit.report.storage import write_text
from tacit.report.wording import upper

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARK = "not private, local only: made from the rows of this machine; no run publishes it"
METHODS = {
    "one-run": "Canary records in one training",
    "clients": "Canary clients in one training",
    "membership": "Membership inference on the released model",
}
ALARMS = (0.001, 0.01, 0.1)  # false positive rates that a reader asks for
HONESTY = (
    "An audit can refute a claim and never prove one. A lower bound above the claim means that the claim is false. One "
    "below it means that this attack, with these canaries, did not find more: a better one may."
)


def write_audit_page(record: AuditRecord, path: Path) -> None:
    """Writes the page.

    Raises:
        MissingExtra: Jinja2 or matplotlib is not installed.
        StorageError: the folder cannot be written.
    """
    write_text(render_audit_page(record), path)


def render_audit_page(record: AuditRecord) -> str:
    """The page as text."""
    environment = pages()
    environment.filters.update(upper=upper, lower=lower, seconds=seconds, percent="{:.1%}".format)
    return environment.get_template("audit.html.j2").render(_context(record))


def lower(bound: float) -> str:
    """A lower bound as text, rounded down, so that the page never says that more was found than was."""
    return f"{math.floor(100 * bound) / 100:.2f}"


def _context(record: AuditRecord) -> dict[str, Any]:
    return {
        "record": record,
        "mark": MARK,
        "methods": METHODS,
        "honesty": HONESTY,
        "started": f"{record.started.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "bounds": _bounds(record.attacks) if record.attacks else "",
        "charts": [_charts(number, attack) for number, attack in enumerate(record.attacks)],
        "alarms": ALARMS,
        "pictures": _pictures(record.inversion) if record.inversion else [],
    }


def _bounds(attacks: tuple[Attack, ...]) -> str:
    """Measured and claimed, side by side."""

    def draw(axes: Axes) -> None:
        places = np.arange(len(attacks))
        measured = [attack.lower_bound for attack in attacks]
        axes.barh(places, measured, 0.5, color=COLOURS["federated"], label="measured, at least")
        claims = [(place, a.claim) for place, a in enumerate(attacks) if math.isfinite(a.claim)]
        if claims:
            rows, bounds = np.array(claims).T
            axes.vlines(
                bounds, rows - 0.4, rows + 0.4, color=COLOURS["pooled"], linewidth=3, label="claimed, at most"
            )
        axes.set_yticks(places, [attack.method for attack in attacks])
        axes.invert_yaxis()
        axes.set_xlim(left=0)

    return drawing("bounds", draw, across="epsilon")


def _charts(number: int, attack: Attack) -> list[Chart]:
    def scores(axes: Axes) -> None:
        groups = {"out": (attack.scores_out, "pooled"), "in": (attack.scores_in, "federated")}
        values = np.array([*attack.scores_in, *attack.scores_out])
        low, high = np.quantile(values, (0.005, 0.995))
        bins = np.linspace(low, max(high, low + 1e-9), 30).tolist()
        for label, (group, colour) in groups.items():
            shown = np.clip(group, bins[0], bins[-1])
            axes.hist(
                shown, bins, density=True, histtype="step", linewidth=1.8, color=COLOURS[colour], label=label
            )

    def curve(axes: Axes) -> None:
        alarms, hits = attack.roc()
        least = 0.5 / max(1, len(attack.scores_out))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot(
            np.maximum(alarms, least), np.maximum(hits, least), color=COLOURS["federated"], label="attack"
        )
        axes.plot([least, 1], [least, 1], "--", color=COLOURS["pooled"], label="a coin")
        axes.set_xlim(least, 1)
        axes.set_ylim(least, 1.05)

    title = "Scores of those that were in and of those that were not"
    return [
        Chart(title, drawing(f"scores{number}", scores, across="score")),
        Chart(
            "Found, against falsely accused",
            drawing(f"roc{number}", curve, across="false positive rate", up="true positive rate"),
        ),
    ]


def _pictures(inversion: Inversion) -> list[tuple[Image, str]]:
    """Each image with its drawing. The scale is that of the original: what lies beyond it is black or white."""
    original = np.array(inversion.images[0].values)
    low, high = float(original.min()), float(original.max())
    return [
        (image, _pixels(np.array(image.values), inversion.shape, low, high)) for image in inversion.images
    ]


def _pixels(values: Any, shape: tuple[int, int], low: float, high: float) -> str:
    rows, columns = shape
    level = np.clip(np.nan_to_num((values - low) / max(high - low, 1e-12)), 0, 1) * 255
    cells = "".join(
        f'<rect x="{i % columns}" y="{i // columns}" width="1.02" height="1.02" fill="rgb({v},{v},{v})"/>'
        for i, v in enumerate(level.astype(int).tolist())
    )
    return (
        f'<svg aria-hidden="true" viewBox="0 0 {columns} {rows}" shape-rendering="crispEdges">{cells}</svg>'
    )
