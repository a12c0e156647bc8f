"""The report as one HTML page: self-contained, without scripts, readable offline and on paper.

Guarantees:
    Every figure on the page stands inside an element that says where it comes from (`MARKS`); what a
    deployment's server would never see is marked so.
    The page names no address outside itself, and text of an experiment is text, never markup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tomli_w

from tacit.errors import MissingExtra
from tacit.metric_names import lower_is_better
from tacit.report import compare, model_card, statement
from tacit.report.outcome_plots import Shown, shown
from tacit.report.plots import Line, line_chart
from tacit.report.record import ColumnShares, ConceptShares, Round, RunRecord, SiteDistances, SiteSlice
from tacit.report.storage import write_text
from tacit.report.wording import metric_text, protected, upper

if TYPE_CHECKING:
    from jinja2 import Environment

MARKS = {
    "simulation": "simulation only: a deployment's server never sees this",
    "private": "differentially private: noised, and paid for from the budget",
    "not-private": "not private: no noise that protects it, and the server sees it",
    "public": "public: settings, times and sizes; the server sees these in a deployment too",
}

MOST_SITES = 60  # rows of a table before the rest is left to report.json
MOST_ROUNDS = 100
MOST_COLUMNS = 30
MOST_FAULTS = 200
CLASS_COLOURS = 8


class Matrix(NamedTuple):
    """Distances between sites as a table: rows, what full colour stands for, and the two that are farthest apart."""

    title: str
    rows: Sequence[Sequence[float]]
    largest: float
    farthest: str
    mean: float


class Importances(NamedTuple):
    """Shares of columns, and where they come from."""

    mark: str
    found: ColumnShares

    @property
    def rows(self) -> list[tuple[str, float]]:
        """The columns that the model goes by most, first."""
        pairs = zip(self.found.columns, self.found.shares or (), strict=bool(self.found.shares))
        return sorted(pairs, key=lambda pair: -pair[1])[:MOST_COLUMNS]


class Leanings(NamedTuple):
    """Shares of concepts, and where they come from."""

    mark: str
    found: ConceptShares

    @property
    def rows(self) -> list[tuple[str, str, str, float, float]]:
        """Name, meaning, class, share and its noise, where there is one."""
        found = self.found
        return [
            (name, meaning, of, share, noise or 0.0)
            for name, meaning, shares in zip(found.concepts, found.meanings, found.shares, strict=True)
            for of, share, noise in zip(found.classes, shares, found.noise, strict=True)
            if share is not None
        ]


class Chart(NamedTuple):
    """A chart and the title above it."""

    title: str
    svg: str


def write_html(record: RunRecord, path: Path) -> None:
    """Writes the page.

    Raises:
        MissingExtra: Jinja2 or matplotlib is not installed.
        StorageError: the folder cannot be written.
    """
    write_text(render_html(record), path)


def render_html(record: RunRecord) -> str:
    """The page as text."""
    environment = pages()
    environment.filters.update(
        metric=metric_text,
        gain=gain_text,
        upper=upper,
        seconds=seconds,
        size=size_text,
        cell=_cell,
        reasons=_reasons,
        percent=percent,
        scale=_scale,
    )
    return environment.get_template("report.html.j2").render(_context(record))


def pages() -> Environment:
    """Templates of this folder, with every text escaped.

    Raises:
        MissingExtra: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise MissingExtra("an HTML report", "simulation") from None
    # Autoescape is on for every template: the automatic choice goes by file name and would leave .j2 out.
    return Environment(
        loader=PackageLoader("tacit", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _context(record: RunRecord) -> dict[str, Any]:
    metrics = compare.metric_names(record)
    main = metrics[0] if metrics else None
    sites = compare.per_site(record, main) if main else []
    return {
        "record": record,
        "marks": MARKS,
        "server_mark": "private" if record.is_private else "not-private",
        "exact_mark": "simulation"
        if record.is_simulation
        else ("private" if record.is_private else "not-private"),
        "protected": {entry.unit: protected(entry.unit, record.experiment) for entry in record.privacy},
        "started": f"{record.started.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "metrics": metrics,
        "main": main,
        "lower_is_better": lower_is_better,
        "comparison": compare.comparison(record),
        "site_mean": compare.mean_over_sites(record.final.sites),
        "learning": _learning_curves(record, metrics),
        "epsilon_chart": _epsilon_chart(record),
        "server_metrics": _server_curves(record),
        "outcomes": _outcomes(record),
        "importances": _importances(record),
        "leanings": _leanings(record),
        "most_leanings": MOST_COLUMNS,
        "timing_chart": _timing_chart(record),
        "round_rows": _thinned(record.rounds),
        "sites": sites[:MOST_SITES],
        "sites_left_out": max(0, len(sites) - MOST_SITES),
        "gains": _tally(sites),
        "smallest_test": min((site.test_rows for site in sites), default=0),
        "other_metrics": [name for name in metrics if name != main],
        "slices": record.partition[:MOST_SITES],
        "slices_left_out": max(0, len(record.partition) - MOST_SITES),
        "matrices": _matrices(record.distances),
        "played": record.faults[:MOST_FAULTS],
        "played_left_out": max(0, len(record.faults) - MOST_FAULTS),
        "faulty_rounds": _faulty_rounds(record),
        "classes": _classes(record.partition),
        "class_colours": CLASS_COLOURS,
        "ledger_keys": list(dict.fromkeys(key for entry in record.ledger for key in entry)),
        "alarms": statement.alarms(record),
        "statement_title": statement.title(record),
        "statement": statement.sections(record),
        "signature": statement.SIGNATURE_LINES,
        "card_title": model_card.title(record),
        # Its section on privacy says what the statement above it says.
        "card": [part for part in model_card.parts(record) if part.section.title != model_card.PRIVACY],
        "sign_off": model_card.SIGN_OFF,
        "experiment_toml": tomli_w.dumps(_without_nothing(record.experiment)),
    }


def _learning_curves(record: RunRecord, metrics: Sequence[str]) -> list[Chart]:
    rounds = [item.round for item in record.rounds]
    charts = []
    for number, metric in enumerate(metrics):
        lines = [Line("federated", "federated", [item.metrics.get(metric) for item in record.rounds])]
        for key, label in (("pooled", "pooled"), ("local", "each site alone")):
            baseline = getattr(record.baselines, key)
            if baseline and baseline.metrics.get(metric) is not None:
                lines.append(Line(label, key, [baseline.metrics[metric]], reference=True))
        if any(y is not None for y in lines[0].ys):
            charts.append(Chart(metric, line_chart(f"learning{number}", lines, rounds=rounds)))
    return charts


def _server_curves(record: RunRecord) -> list[Chart]:
    rounds = [item.round for item in record.rounds]
    names = dict.fromkeys(name for item in record.rounds for name in item.private_metrics)
    return [
        Chart(name, line_chart(f"server{number}", [_own(record, name)], rounds=rounds))
        for number, name in enumerate(names)
    ]


def _outcomes(record: RunRecord) -> list[Shown]:
    found = []
    if record.final.outcomes is not None:
        title = "The final model on all held-out rows"
        found.append(shown(record.final.outcomes, "simulation", title, "exact"))
    if record.learned is not None:
        title = f"As the server learned it, of the model that went into round {record.learned.round}"
        mark = "private" if record.is_private else "not-private"
        found.append(shown(record.learned, mark, title, "learned"))
    return found


def _importances(record: RunRecord) -> list[Importances]:
    found = []
    if record.final.importance is not None:
        found.append(Importances("simulation", record.final.importance))
    if record.importance is not None:
        found.append(Importances("private" if record.is_private else "not-private", record.importance))
    return found


def _leanings(record: RunRecord) -> list[Leanings]:
    found = []
    if record.final.concepts is not None:
        found.append(Leanings("simulation", record.final.concepts))
    if record.concepts is not None:
        found.append(Leanings("private" if record.is_private else "not-private", record.concepts))
    return found


def _own(record: RunRecord, name: str) -> Line:
    return Line(
        "what the server learned", "federated", [item.private_metrics.get(name) for item in record.rounds]
    )


def _epsilon_chart(record: RunRecord) -> str:
    """Epsilon of everything released so far against what was asked for; empty when it is infinite."""
    spent = [item.epsilon for item in record.rounds]
    if not any(value is not None and math.isfinite(value) for value in spent):
        return ""
    targets = [entry.target_epsilon for entry in record.privacy if math.isfinite(entry.target_epsilon)]
    lines = [Line("spent so far", "federated", spent)]
    lines += [Line("asked for", "pooled", [target], reference=True) for target in targets]
    return line_chart("epsilon", lines, rounds=[item.round for item in record.rounds], from_zero=True)


def _timing_chart(record: RunRecord) -> str:
    if not record.rounds:
        return ""
    line = Line("seconds", "federated", [item.seconds for item in record.rounds])
    return line_chart("timing", [line], rounds=[item.round for item in record.rounds], from_zero=True)


def _tally(sites: Sequence[compare.SiteComparison]) -> dict[str, int]:
    gains = [site.gain for site in sites if site.gain is not None]
    return {
        "gain": sum(gain > 0 for gain in gains),
        "lose": sum(gain < 0 for gain in gains),
        "same": sum(gain == 0 for gain in gains),
    }


def _matrices(apart: SiteDistances | None) -> list[Matrix]:
    """Distances in labels and in features."""
    if apart is None:
        return []
    matrices = []
    for title, rows in (("labels", apart.labels), ("features", apart.features)):
        pairs = [(value, i, j) for i, row in enumerate(rows) for j, value in enumerate(row[:i])]
        if not pairs:
            continue
        largest, i, j = max(pairs)
        mean = math.fsum(value for value, _, _ in pairs) / len(pairs)
        matrices.append(Matrix(title, rows, largest or 1.0, f"{apart.sites[j]} and {apart.sites[i]}", mean))
    return matrices


def _classes(slices: Sequence[SiteSlice]) -> list[str]:
    return list(dict.fromkeys(label for site in slices for label in site.labels))


def _thinned(rounds: Sequence[Any]) -> list[Any]:
    """At most about MOST_ROUNDS of them, evenly, always with the last."""
    step = max(1, math.ceil(len(rounds) / MOST_ROUNDS))
    return [item for index, item in enumerate(rounds, start=1) if index % step == 0 or index == len(rounds)]


def _faulty_rounds(record: RunRecord) -> list[Round]:
    """The rounds of the faults that the page shows."""
    numbers = {fault.round for fault in record.faults[:MOST_FAULTS]}
    return [item for item in record.rounds if item.round in numbers]


def _without_nothing(value: Any) -> Any:
    """TOML has no null."""
    if isinstance(value, dict):
        return {key: _without_nothing(item) for key, item in value.items() if item is not None}
    return [_without_nothing(item) for item in value] if isinstance(value, list) else value


def gain_text(value: float | None) -> str:
    """The sign is a word of its own, so that colour is never all that tells a gain from a loss."""
    if value is None:
        return "-"
    sign = "▲ +" if value > 0 else ("▼ −" if value < 0 else "= ")  # noqa: RUF001 - a typographic minus
    return f"{sign}{abs(value):.3f}"


def _scale(sites: Sequence[compare.SiteComparison]) -> float:
    """What a full bar stands for: 1 for shares, else the largest value."""
    values = [v for site in sites for v in (site.federated, site.local) if v is not None and math.isfinite(v)]
    return max([1.0, *values])


def percent(value: float, scale: float) -> str:
    """How much of `scale` a value is, from 0 to 100: the length of a bar."""
    return f"{100 * min(1.0, max(0.0, value / scale)):.2f}" if scale else "0"


def seconds(value: float) -> str:
    """A time as a reader says it."""
    if value < 0.01:
        return f"{1000 * value:.2g} ms"
    if value < 60:
        return f"{value:.2f} s"
    return f"{int(value // 60)} min {int(value % 60):02d} s"


def size_text(value: float | None) -> str:
    """A number of bytes in the unit that it is read in."""
    if value is None:
        return "-"
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.4g} {unit}"
        value /= 1000
    return f"{value:.4g} GB"


def _reasons(refusals: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({count})" for reason, count in sorted(refusals.items())) or "-"


def _cell(value: Any) -> str:
    """One ledger cell: long hashes are cut, in full in report.json."""
    text = statement.plain(str(value))
    return text if len(text) <= 24 else f"{text[:12]}…{text[-4:]}"
