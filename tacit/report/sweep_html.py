"""The report of a sweep as one HTML page: self-contained, without scripts, as `tacit.report.html` makes that of a run.

Guarantees:
    The page says that all of it is simulation, and what it would cost to choose among the cells on private data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC
from typing import Any, NamedTuple

from tacit.errors import MissingExtra
from tacit.metric_names import limits, lower_is_better
from tacit.report.html import MARKS, Chart, gain_text, size_text
from tacit.report.html import seconds as seconds_text
from tacit.report.sweep_plots import SERIES, Column, Curve, Level, band_chart, dot_chart, gain_chart
from tacit.report.sweep_record import SEED, Band, Group, SweepRecord
from tacit.report.wording import metric_text, upper, value_text

EPSILONS = ("privacy.record.epsilon", "privacy.client.epsilon")
MOST_GROUPS = 60
MOST_COLUMNS = 12  # of a chart, and of the table of sites
MOST_SITES = 60


class Named(NamedTuple):
    """A group with the letter and the number by which charts and tables call it."""

    letter: str
    text: str
    group: Group


def render_sweep(record: SweepRecord) -> str:
    """The page as text.

    Raises:
        MissingExtra: Jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise MissingExtra("an HTML report", "simulation") from None
    environment = Environment(
        loader=PackageLoader("tacit", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        metric=metric_text,
        gain=gain_text,
        upper=upper,
        seconds=seconds_text,
        size=size_text,
        band=_band,
        mean=_mean,
        said=value_text,
    )
    return environment.get_template("sweep.html.j2").render(_context(record))


def _context(record: SweepRecord) -> dict[str, Any]:
    groups = _named(record)
    shown = groups[:MOST_COLUMNS]
    utility, lines = _utility(record)
    return {
        "record": record,
        "marks": MARKS,
        "started": f"{record.started.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "lower": bool(record.main) and lower_is_better(record.main),
        "keys": [key for key in record.axes if key != SEED],
        "seeds": len(record.axes.get(SEED, [0])),
        "rows": [_row(record, named) for named in groups[:MOST_GROUPS]],
        "rows_left_out": max(0, len(groups) - MOST_GROUPS),
        "best": _best(record, groups),
        "lettered": any(named.letter == "A" for named in groups),
        "utility": utility,
        "lines": lines,
        "target_chart": _target_chart(record, shown),
        "cost": _cost(record),
        "gain_chart": _gain_chart(record, shown),
        "sites": _sites(record, shown),
        "columns": shown,
        "columns_left_out": max(0, len(groups) - MOST_COLUMNS),
        "failed": [cell for cell in record.cells if cell.has_failed],
        "spent": _spent(record),
        "private": any(math.isfinite(c.epsilon) for c in record.finished if c.epsilon is not None),
    }


def _named(record: SweepRecord) -> list[Named]:
    """Groups with letters; with their one number instead, where the sweep goes over a single key of numbers."""
    keys = [key for key in record.axes if key != SEED]
    names = []
    for number, group in enumerate(record.groups()):
        letter = (
            chr(ord("A") + number)
            if number < 26
            else f"{chr(ord('A') + number // 26 - 1)}{chr(ord('A') + number % 26)}"
        )
        if len(keys) == 1 and (text := _number(group.values[keys[0]])):
            letter = text
        names.append(Named(letter, told(group.values), group))
    return names


def _number(value: Any) -> str:
    """A number, or infinity, as it stands below an axis; "" of anything else."""
    if value == "none":
        return "∞"
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def told(values: dict[str, Any]) -> str:
    """A combination of values in words."""
    return ", ".join(f"{key} = {value_text(value)}" for key, value in values.items()) or "all cells"


def _row(record: SweepRecord, named: Named) -> dict[str, Any]:
    """What the table says of one group."""
    cells, main, group = named.group.cells, record.main, named.group
    gains = [gain for cell in cells for gain in cell.gains.values() if gain is not None]
    reached = [c.target_round for c in cells if c.target_round is not None]
    return {
        "letter": named.letter,
        "values": group.values,
        "count": len(cells),
        "epsilon": max((math.inf if c.epsilon is None else c.epsilon for c in cells), default=math.inf),
        "utility": group.band([c.metrics.get(main) for c in cells]),
        "site_mean": group.band([c.site_mean.get(main) for c in cells]),
        "pooled": group.band([c.pooled.get(main) for c in cells]),
        "local": group.band([c.local.get(main) for c in cells]),
        "target": group.band(list(reached)),
        "never": len(cells) - len(reached),
        "cohort": max(c.cohort for c in cells),
        "per_round": group.band([c.seconds / c.rounds if c.rounds else None for c in cells]),
        "bytes_up": group.band([c.bytes_up for c in cells]),
        "gain": sum(gain > 0 for gain in gains),
        "lose": sum(gain < 0 for gain in gains),
        "sites": len(gains),
        "worst": min(gains, default=None),
    }


def _best(record: SweepRecord, groups: Sequence[Named]) -> Named | None:
    """The group with the best mean of the main metric."""
    sign = -1 if record.main and lower_is_better(record.main) else 1
    means = [
        (sign * found.mean, named)
        for named in groups
        if (found := named.group.band([c.metrics.get(record.main) for c in named.group.cells]))
    ]
    return max(means, key=lambda pair: pair[0])[1] if means else None


def _utility(record: SweepRecord) -> tuple[Chart | None, list[str]]:
    """The main metric against epsilon, or against the first key of numbers; a line for each combination of others."""
    key = _horizontal(record)
    if key is None or not record.main:
        return None, []
    is_epsilon = key in EPSILONS
    values = [value for value in record.axes[key] if _number(value)]
    places = _places(values)
    lines: dict[str, dict[float, Band | None]] = {}
    for group in record.groups():
        if group.values[key] not in values:
            continue
        others = told({name: v for name, v in group.values.items() if name != key})
        found = group.band([c.metrics.get(record.main) for c in group.cells])
        lines.setdefault(others, {})[places[repr(group.values[key])]] = found
    curves = [Curve(sorted(line), [line[x] for x in sorted(line)]) for line in lines.values()]
    xlabel = "epsilon" if is_epsilon else "value"
    svg = band_chart(
        "utility",
        curves,
        xlabel=xlabel,
        ylabel=drawn(record.main),
        ticks=[(places[repr(value)], _number(value)) for value in values],
        levels=_levels(record),
        limits=limits(record.main),
        log=_is_wide(list(places.values())),
    )
    title = f"{record.main} against {'epsilon' if is_epsilon else key}"
    return Chart(title, svg), list(lines)[:SERIES] if len(lines) > 1 else []


def _horizontal(record: SweepRecord) -> str | None:
    """Epsilon, if the sweep goes over it, else its first key with two numbers or more."""
    keys = [key for key in record.axes if key != SEED]
    for key in [*(k for k in EPSILONS if k in keys), *keys]:
        if sum(bool(_number(value)) for value in record.axes[key]) > 1:
            return key
    return None


def _places(values: Sequence[Any]) -> dict[str, float]:
    """Where each value stands: itself; without privacy a step beyond the largest epsilon."""
    numbers = [float(value) for value in values if value != "none"]
    beyond = max(numbers, default=1.0) * 3
    return {repr(value): beyond if value == "none" else float(value) for value in values}


def _is_wide(numbers: Sequence[float]) -> bool:
    return min(numbers) > 0 and max(numbers) / min(numbers) >= 5


def drawn(metric: str) -> str:
    """A metric's name where it may be drawn: ours, and of plain letters; a user's own name is in the title."""
    return metric if metric.isascii() and metric.isprintable() and "$" not in metric else "metric"


def _levels(record: SweepRecord) -> list[Level]:
    together = Group({}, record.finished)
    found = [
        ("pooled", "pooled", together.band([c.pooled.get(record.main) for c in record.finished])),
        ("local", "each site alone", together.band([c.local.get(record.main) for c in record.finished])),
    ]
    return [Level(b.mean, colour, word) for colour, word, b in found if b is not None]


def _columns(groups: Sequence[Named], values: Sequence[Sequence[float]], per_cell: bool) -> list[Column]:
    return [
        Column(named.letter, own, named.group.band(own) if per_cell else None)
        for named, own in zip(groups, values, strict=True)
    ]


def _target_chart(record: SweepRecord, groups: Sequence[Named]) -> Chart | None:
    """Rounds until the target is reached: a dot for each run that does."""
    target = record.target
    values = [[float(c.target_round) for c in n.group.cells if c.target_round] for n in groups]
    if target is None or not any(values):
        return None
    svg = dot_chart("target", _columns(groups, values, True), xlabel=_axis(record), ylabel="rounds")
    return Chart(f"Rounds to {target.metric} {metric_text(target.value)}", svg)


def _gain_chart(record: SweepRecord, groups: Sequence[Named]) -> Chart | None:
    """What each site gains over training alone."""
    values = [[g for c in n.group.cells for g in c.gains.values() if g is not None] for n in groups]
    if not any(values):
        return None
    columns = [
        Column(named.letter, own, Band(math.fsum(own) / len(own), None, None, len(own)) if own else None)
        for named, own in zip(groups, values, strict=True)
    ]
    svg = gain_chart("gains", columns, xlabel=_axis(record), ylabel="gain over training alone")
    return Chart(f"Gain of each site in {record.main}", svg)


def _axis(record: SweepRecord) -> str:
    """What stands below the columns."""
    keys = [key for key in record.axes if key != SEED]
    if len(keys) == 1 and keys[0] in EPSILONS:
        return "epsilon"
    return "value" if len(keys) == 1 and _horizontal(record) else "setting"


def _cost(record: SweepRecord) -> list[Chart]:
    """Seconds of a round and bytes of a client against the cohort, where the sweep has several cohorts."""
    sizes = sorted({cell.cohort for cell in record.finished})
    if len(sizes) < 2:
        return []
    by_size = [[cell for cell in record.finished if cell.cohort == size] for size in sizes]
    seconds = [Group({}, c).band([x.seconds / x.rounds if x.rounds else None for x in c]) for c in by_size]
    bytes_up = [
        Group({}, c).band([None if x.bytes_up is None else x.bytes_up / 1000 for x in c]) for c in by_size
    ]
    log = _is_wide([float(size) for size in sizes])
    ticks, xs = [(float(size), str(size)) for size in sizes], [float(size) for size in sizes]
    return [
        Chart(
            title,
            band_chart(
                name,
                [Curve(xs, bands)],
                xlabel="clients in a round",
                ylabel=unit,
                ticks=ticks,
                log=log,
                from_zero=True,
            ),
        )
        for name, title, unit, bands in (
            ("seconds", "Seconds of a round on this machine", "s", seconds),
            ("bytes", "Sent by one client in a round", "kB", bytes_up),
        )
        if any(bands)
    ]


def _sites(record: SweepRecord, groups: Sequence[Named]) -> list[tuple[str, list[float | None]]]:
    """Mean gain of each site in each group, those that lose most first; of seeds only where a site stays the same."""
    if not record.is_natural and len(record.axes.get(SEED, [0])) > 1:
        return []
    labels = dict.fromkeys(label for named in groups for cell in named.group.cells for label in cell.gains)
    rows = []
    for label in labels:
        found = [named.group.band([c.gains.get(label) for c in named.group.cells]) for named in groups]
        rows.append((label, [None if b is None else b.mean for b in found]))
    rows.sort(key=lambda row: min((v for v in row[1] if v is not None), default=math.inf))
    return rows[:MOST_SITES]


def _spent(record: SweepRecord) -> tuple[float, float, int] | None:
    """Epsilon and delta of all private cells together, by plain addition, and how many they are."""
    private = [c for c in record.finished if c.epsilon is not None and math.isfinite(c.epsilon)]
    if not private:
        return None
    return (
        math.fsum(c.epsilon for c in private if c.epsilon is not None),
        math.fsum(c.delta or 0.0 for c in private),
        len(private),
    )


def _mean(found: Band | None) -> str:
    return metric_text(found.mean if found else None)


def _band(found: Band | None) -> str:
    if found is None:
        return "-"
    if found.high is None:
        return metric_text(found.mean)
    return f"{metric_text(found.mean)} ± {metric_text(found.high - found.mean)}"
