"""From finished cells to the record of a sweep, its files and its table in the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from simulations.sweep.folder import SweepFolder
from simulations.sweep.grid import Axis, Cell, short
from simulations.sweep.metric import check_known
from tacit.errors import ConfigError
from tacit.metric_names import lower_is_better
from tacit.report import compare
from tacit.report.record import RunRecord
from tacit.report.storage import write_text
from tacit.report.sweep_record import Band, Group, SweepCell, SweepRecord, Target
from tacit.report.wording import value_text

SHARE_OF_POOLED = 0.95  # the target of a sweep that states none


def target_of(text: str) -> Target:
    """The target of a `--target metric=value`."""
    metric, _, value = text.partition("=")
    try:
        return Target(metric=metric.strip(), value=float(value), stated=True)
    except ValueError:
        raise ConfigError(f"{text!r} is not METRIC=NUMBER", key="--target") from None


def record_of(
    folder: SweepFolder,
    cells: Sequence[Cell],
    axes: Sequence[Axis],
    reasons: Mapping[int, str],
    target: Target | None,
) -> SweepRecord:
    """The record of all cells.

    Args:
        folder: with the cells that are finished.
        cells: in the order of the grid.
        axes: of the grid.
        reasons: of those that failed, by position.
        target: as stated, if so.

    Raises:
        ConfigError: the target is about a metric that there is not.
    """
    records = {i: record for i, cell in enumerate(cells) if (record := folder.record(cell)) is not None}
    main = next((names[0] for r in records.values() if (names := compare.metric_names(r))), "")
    if target is not None:
        known = {name for r in records.values() for name in r.final.metrics}
        if known:
            check_known(target.metric, known, key="--target")
    else:
        target = _of_pooled(list(records.values()), main)
    return SweepRecord(
        name=cells[0].experiment.name,
        started=datetime.now(UTC),
        axes={axis.key: list(axis.values) for axis in axes},
        main=main,
        target=target,
        cells=tuple(
            SweepCell.of(cell.name, dict(cell.values), records[i], main, target)
            if i in records
            else SweepCell.failed(cell.name, dict(cell.values), reasons.get(i, "not run"))
            for i, cell in enumerate(cells)
        ),
        is_natural=all(not cell.experiment.partition.is_counted for cell in cells),
    )


def _of_pooled(records: Sequence[RunRecord], main: str) -> Target | None:
    """A share of what pooled training reaches, on the mean; of a metric that is better lower, that much more."""
    values = [
        value
        for record in records
        if record.baselines.pooled and (value := record.baselines.pooled.metrics.get(main)) is not None
    ]
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    share = 2 - SHARE_OF_POOLED if lower_is_better(main) else SHARE_OF_POOLED
    return Target(metric=main, value=share * mean, stated=False)


def write_outcome(record: SweepRecord, folder: SweepFolder) -> None:
    """Writes sweep.json, sweep.csv and sweep.html."""
    from tacit.report.sweep_html import render_sweep

    content = record.model_dump(mode="json")
    write_text(
        json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", folder.path / "sweep.json"
    )
    write_text(csv_of(record), folder.path / "sweep.csv")
    write_text(render_sweep(record), folder.path / "sweep.html")


def csv_of(record: SweepRecord) -> str:
    """One line per cell: the swept keys, what came of it, and all figures; an undefined one is empty."""
    metrics = sorted({name for cell in record.cells for name in cell.metrics})
    rows = []
    for cell in record.cells:
        gains = [gain for gain in cell.gains.values() if gain is not None]
        rows.append(
            {
                **{key: _plain(cell.values[key]) for key in record.axes},
                "outcome": cell.outcome,
                "epsilon": cell.epsilon,
                "delta": cell.delta,
                **{name: cell.metrics.get(name) for name in metrics},
                **{f"pooled_{name}": cell.pooled.get(name) for name in metrics},
                **{f"local_{name}": cell.local.get(name) for name in metrics},
                **{f"site_mean_{name}": cell.site_mean.get(name) for name in metrics},
                "sites_gain": sum(gain > 0 for gain in gains),
                "sites_lose": sum(gain < 0 for gain in gains),
                "smallest_gain": min(gains, default=None),
                "rounds": cell.rounds,
                "rounds_to_target": cell.target_round,
                "cohort": cell.cohort,
                "seconds": cell.seconds,
                "bytes_up_per_client_and_round": cell.bytes_up,
                "folder": f"cells/{cell.name}",
            }
        )
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value)


def terminal_table(record: SweepRecord) -> Table:
    """A line for each combination of values, over its seeds; what fits beside each other in a terminal."""
    keys = [key for key in record.axes if key != "seed"]
    table = Table(
        title=Text(f"{record.name}: {len(record.finished)} of {len(record.cells)} cells"), pad_edge=False
    )
    table.title_justify = table.caption_justify = "left"
    for key in keys:
        table.add_column(Text(short(key, keys)), min_width=min(12, len(short(key, keys))))
    reach = [f"to {record.target.value:.3g}"] if record.target else []
    for name in ["seeds", record.main or "metric", "pooled", "alone", *reach, "s/round", "gain / lose"]:
        table.add_column(Text(name), justify="right", no_wrap=name == record.main)
    for group in record.groups():
        table.add_row(*(Text(value_text(group.values[key])) for key in keys), *_figures(group, record))
    of_target = f"; to {record.target.value:.3g}: rounds until it is reached" if record.target else ""
    table.caption = Text(
        "+-: half width of the 95 % confidence interval of the mean over seeds; alone: mean of the sites' own models; "
        f"gain / lose: sites of all seeds, against their own model{of_target}"
    )
    return table


def _figures(group: Group, record: SweepRecord) -> list[str]:
    cells, main = group.cells, record.main
    gains = [gain for cell in cells for gain in cell.gains.values() if gain is not None]
    figures = [str(len(cells)), _banded(group.band([c.metrics.get(main) for c in cells]))]
    figures += [_mean(group.band([c.pooled.get(main) for c in cells]))]
    figures += [_mean(group.band([c.local.get(main) for c in cells]))]
    if record.target:
        reached = [cell.target_round for cell in cells if cell.target_round is not None]
        missed, mean = len(cells) - len(reached), group.band(list(reached))
        figures += [(f"{mean.mean:.0f}" if mean else "-") + (f" ({missed} never)" if missed else "")]
    per_round = group.band([c.seconds / c.rounds if c.rounds else None for c in cells])
    figures += [f"{per_round.mean:.3g}" if per_round else "-"]
    return [*figures, f"{sum(g > 0 for g in gains)}/{sum(g < 0 for g in gains)}"]


def _mean(found: Band | None) -> str:
    return f"{found.mean:.3f}" if found else "-"


def _banded(found: Band | None) -> str:
    if found is None or found.high is None:
        return _mean(found)
    return f"{found.mean:.3f} +- {found.high - found.mean:.3f}"
