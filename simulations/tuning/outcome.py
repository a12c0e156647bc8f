"""From finished trials to the record of a search, its files and its table in the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from simulations.sweep.grid import Cell, short
from simulations.tuning import counted
from simulations.tuning.folder import SearchFolder
from simulations.tuning.search import Search, curve, metric_of, score, value_of
from simulations.tuning.space import Dimension, Range, Trials, Tuning
from tacit.config import Data
from tacit.durable import write_file
from tacit.metric_names import lower_is_better
from tacit.report.record import RunRecord
from tacit.report.storage import write_json, write_text
from tacit.report.tuning_record import Selection, TuningRecord, TuningTrial
from tacit.report.wording import upper, value_text

# Of any other source, a new one among them, only its owner can say whose data they are.
PUBLISHED: Final = ("breast_cancer", "heart_disease", "credit_default", "digits", "medmnist")
MOST_ROWS: Final = 20
BEST, BEST_MODEL = "best.toml", "best.safetensors"


def record_of(
    search: Search,
    tuning: Tuning,
    dimensions: Sequence[Dimension],
    trials: Trials,
    reasons: Mapping[int, str],
) -> tuple[TuningRecord, Cell | None]:
    """The record of a search, and its best trial, which the record of one that is counted does not name.

    Args:
        search: all of whose trials have ended.
        tuning: its settings.
        dimensions: its space.
        trials: makes experiments.
        reasons: why trials failed, by number.
    """
    cells = [search.cell(number) for number in range(len(search.values))]
    records = {number: r for number, cell in enumerate(cells) if (r := search.record(cell)) is not None}
    rows = [
        _trial(cell.name, cell.values, records[number], tuning)
        if number in records
        else TuningTrial(
            name=cell.name, values=dict(cell.values), outcome=f"failed: {reasons.get(number, 'not run')}"
        )
        for number, cell in enumerate(cells)
    ]
    best = best_of(records, cells_values=[cell.values for cell in cells], tuning=tuning)
    # Of the best trial: what another one has measured, or failed to, is not to be told of a search that is counted.
    metric = "" if best is None else metric_of(records[best], tuning)
    base = trials.best({})
    fields: dict[str, Any] = {
        "name": base.name,
        "started": datetime.now(UTC),
        "method": tuning.method,
        "space": {d.key: told_space(d) for d in dimensions},
        "logarithmic": tuple(d.key for d in dimensions if isinstance(d, Range) and d.log),
        "metric": metric,
        "lower": bool(metric) and lower_is_better(metric),
        "round": tuning.round,
        "best": None if best is None else rows[best],
        "accounting": tuning.accounting,
        "public": public_of(base.data, tuning),
    }
    chosen = None if best is None else cells[best]
    if tuning.accounting != "private":
        importances = search.importances()
        return TuningRecord(**fields, seed=tuning.seed, trials=tuple(rows), importances=importances), chosen
    law, (_, delta) = counted.number_of(tuning), counted.released(base)
    cost = Selection(epsilon=counted.total_epsilon(tuning, base), delta=delta, mean=law.mean, eta=law.eta)
    if best is not None:  # its number, and how long all took, would tell of the others
        fields["best"] = rows[best].model_copy(update={"name": "", "seconds": 0.0})
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return TuningRecord(**{**fields, "started": day}, selection=cost), chosen


def best_of(
    records: Mapping[int, RunRecord], *, cells_values: Sequence[Mapping[str, Any]], tuning: Tuning
) -> int | None:
    """Number of the best trial; None where none has a value.

    Of equally good ones it is the first; of a search that is counted the last in an order of what they release: the
    theorem is about outputs that are in order, whatever trial they came from.
    """
    scores = {n: s for n, record in records.items() if (s := score(record, tuning)) is not None}

    def rank(number: int) -> tuple[float, Any]:
        if tuning.accounting != "private":
            return scores[number], -number
        return scores[number], json.dumps(
            [cells_values[number], curve(records[number], tuning)], sort_keys=True
        )

    return max(scores, key=rank, default=None)


def _trial(name: str, values: Mapping[str, Any], record: RunRecord, tuning: Tuning) -> TuningTrial:
    promise = next((e for e in record.privacy if math.isfinite(e.epsilon)), record.privacy[0])
    return TuningTrial(
        name=name,
        values=dict(values),
        outcome=record.outcome,
        value=value_of(record, tuning),
        metrics=dict(curve(record, tuning)[-1]),
        epsilon=promise.epsilon,
        delta=promise.delta,
        seconds=math.fsum(item.seconds for item in record.rounds),
    )


def told_space(dimension: Dimension) -> str:
    """A dimension in words."""
    if isinstance(dimension, Range):
        kind = "whole numbers " if dimension.is_whole else ""
        return f"{kind}{dimension.low:g} to {dimension.high:g}{', by logarithm' if dimension.log else ''}"
    return ", ".join(value_text(value) for value in dimension.values)


def public_of(data: Data, tuning: Tuning) -> str:
    """Why data count as public; "" = they do not."""
    if tuning.accounting == "private":
        return ""
    if data.source == "generated":
        return "they are generated, of nobody"
    if data.source in PUBLISHED:
        return f"{data.source} is a published data set"
    return "whoever ran it states that they are public or synthetic" if tuning.accounting == "public" else ""


def write_outcome(record: TuningRecord, best: Cell | None, folder: SearchFolder, trials: Trials) -> None:
    """Writes tuning.json, tuning.csv, tuning.html and, where a trial has a value, best.toml and its model."""
    from tacit.report.tuning_html import render_tuning

    write_json(record, folder.path / "tuning.json")
    write_text(csv_of(record), folder.path / "tuning.csv")
    write_text(render_tuning(record), folder.path / "tuning.html")
    if record.best is not None:
        text = trials.best(record.best.values).to_toml()
        write_text(f"# The best of a search: {told_best(record)}\n\n{text}", folder.path / BEST)
    if best is not None and (model := folder.cell(best) / "model.safetensors").exists():
        write_file(folder.path / BEST_MODEL, model.read_bytes())


def told_best(record: TuningRecord) -> str:
    """The best trial in one line."""
    if record.best is None:
        return "no trial has a value"
    values = ", ".join(f"{key} = {value_text(value)}" for key, value in record.best.values.items())
    return f"{record.metric} {record.best.value:.4g} with {values}"


def csv_of(record: TuningRecord) -> str:
    """One line per trial; an undefined figure is empty. Of a search that is counted the best alone."""
    rows = record.trials or ((record.best,) if record.best else ())
    metrics = sorted({name for trial in rows for name in trial.metrics})
    keys = list(record.space)
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(["trial", *keys, "outcome", "value", "epsilon", "delta", *metrics, "seconds"])
    for trial in rows:
        values = [
            v if isinstance(v := trial.values[key], str | int | float) else json.dumps(v) for key in keys
        ]
        figures = [trial.metrics.get(name) for name in metrics]
        writer.writerow(
            [
                trial.name,
                *values,
                trial.outcome,
                trial.value,
                trial.epsilon,
                trial.delta,
                *figures,
                trial.seconds,
            ]
        )
    return file.getvalue()


def terminal_table(record: TuningRecord) -> Table:
    """The best trials, the best first; of a search that is counted the best alone."""
    keys = list(record.space)
    rows = sorted(record.found, key=lambda t: (t.value or 0.0) if record.lower else -(t.value or 0.0))
    if not record.trials and record.best is not None:
        rows = [record.best]
    title = f"{record.name}: {record.method} search"
    if record.trials:
        title += f", {len(record.trials) - len(record.failed)} of {len(record.trials)} trials"
    table = Table(title=Text(title), pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    for name in ("trial", *(short(key, keys) for key in keys), record.metric or "metric"):
        table.add_column(Text(name), justify="right")
    for trial in rows[:MOST_ROWS]:
        figures = (value_text(trial.values[key], 4) for key in keys)
        table.add_row(*map(Text, (trial.name, *figures, f"{trial.value:.4f}")))
    table.caption = Text(told_cost(record))
    return table


def told_cost(record: TuningRecord) -> str:
    """What the search cost, in one sentence."""
    if record.selection is not None:
        cost = record.selection
        return (
            f"publishing the best costs epsilon {upper(cost.epsilon)} at delta {cost.delta:g}, for a number of trials "
            f"that nobody is told; {cost.mean:g} were to be expected"
        )
    if record.public:
        return f"no private data were looked at: {record.public}"
    return "this search looked at private data, and what that costs is not counted: see the report"
