"""`tacit client monitor`: whether today's records still look like those at the site that the model was trained on.

Everything is computed and shown here; nothing is sent, and nothing is written. Built-in tables with classes only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from client.site import Site
from tacit.data.drift import Bins, Drift, cut, drift
from tacit.data.preprocessing import EMPTY, UNSEEN, Mask, positions_of, selected_rows
from tacit.data.readers import read_table
from tacit.data.schema import NumericColumn, Schema
from tacit.data.table import Table
from tacit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from tacit.inference.trained import Trained

FEW: Final = 100  # rows, below which the conventions for PSI are mostly about chance
METRICS: Final = ("auroc", "accuracy", "ece")


@dataclass(frozen=True)
class Column:
    """One column then and now, or what the model predicts from all of them.

    Attributes:
        name: of the column; "prediction".
        drift: how far it has moved.
        missing: shares of empty cells then and now.
        unseen: cells now whose category the schema does not list.
    """

    name: str
    drift: Drift
    missing: tuple[float, float] = (0.0, 0.0)
    unseen: int = 0


@dataclass(frozen=True)
class Monitored:
    """What one look has found.

    Attributes:
        rows: of the site's training data, and of the new file.
        columns: each feature, and "prediction" last, where a row of both could be predicted.
        held_out: whether predictions then are of the site's test records; else of those it was trained on.
        metrics: by name, then and now; empty without labels.
        notes: what was left out and why, one sentence each.
    """

    rows: tuple[int, int]
    columns: tuple[Column, ...]
    held_out: bool
    metrics: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...]

    @property
    def drifted(self) -> bool:
        """Whether any column, or the prediction, has."""
        return any(column.drift.state == "drifted" for column in self.columns)


@dataclass(frozen=True)
class _Today:
    """What a new file must have: the features. Labels may come later, and a split means nothing."""

    schema: Schema

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(self.schema.columns)

    @property
    def optional(self) -> tuple[str, ...]:
        return (self.schema.label,)

    @property
    def numeric(self) -> frozenset[str]:
        return self.schema.numeric


def monitor(folder: Path, model: Path, data: Path) -> Monitored:
    """Compares a file with the training data that the site's site.toml names.

    Args:
        folder: the site's.
        model: folder of the run that trained the model.
        data: the new records, all rows of it; the label column may be missing or have empty cells.

    Raises:
        ConfigError: the folder is no site's, or the model is none of a table's classes.
        DataError: a file cannot be used.
    """
    from tacit.inference.trained import Trained
    from tacit.tasks.tabular import TabularClassification

    site, trained = Site.open(folder), Trained.open(model)
    if not isinstance(trained.task, TabularClassification):
        raise ConfigError(
            'only models of [task] kind = "tabular" are monitored', source=model, key="task.kind"
        )
    schema = trained.task.schema
    then, now = read_table(site.data, schema), read_table(data, _Today(schema))
    whole = schema.model_copy(update={"missing_rows": "impute"})  # a row with an empty cell is one, too
    rows = selected_rows(then, whole, "train")
    if not rows.any():
        raise DataError("has no training row to compare with", path=site.data)
    columns = [_column(name, schema, then.where(rows), now) for name in schema.columns]
    test = selected_rows(then, whole, "test")
    held_out = bool(test.any())
    predicted, metrics, notes = _predictions(trained, schema, then.where(test if held_out else rows), now)
    counts = int(rows.sum()), now.num_rows
    return Monitored(counts, (*columns, *predicted), held_out, metrics, tuple(notes))


def _column(name: str, schema: Schema, then: Table, now: Table) -> Column:
    column = schema.columns[name]
    if isinstance(column, NumericColumn):
        numbers = then.numbers(name), now.numbers(name)
        empty = float(np.isnan(numbers[0]).mean()), float(np.isnan(numbers[1]).mean())
        return Column(name, drift(*cut(*numbers)), empty)
    old, new = (positions_of(table.texts(name), column.categories) for table in (then, now))
    empty = float((old == EMPTY).mean()), float((new == EMPTY).mean())
    return Column(name, drift(old, new), empty, int((new == UNSEEN).sum()))


def _predictions(
    trained: Trained, schema: Schema, then: Table, now: Table
) -> tuple[list[Column], dict[str, tuple[float, float]], list[str]]:
    """The column "prediction", what it is worth then and now, and what has to be said about the two."""
    notes = []
    usable = _usable(schema, then), _usable(schema, now)
    if (left_out := int((~usable[1]).sum())) > 0:
        notes.append(f"{left_out} new rows have a cell that the model does not take: they are not predicted")
    then, now = then.where(usable[0]), now.where(usable[1])
    if not then.num_rows or not now.num_rows:
        return [], {}, [*notes, "no row is left to be predicted"]
    logits = _logits(trained, schema, then), _logits(trained, schema, now)
    predicted = [Column("prediction", drift(*_scores(*logits)))]
    if schema.label not in now.columns:
        notes.append(f"the new file has no column {schema.label!r}: whether predictions are right is skipped")
        return predicted, {}, notes
    truths = _truths(schema, then), _truths(schema, now)
    known = int((truths[1] != EMPTY).sum())
    if known < now.num_rows:
        notes.append(f"of {now.num_rows} predicted new rows {known} have a label: metrics are of these")
    if not known:
        return predicted, {}, notes
    old, new = (_metrics(trained, *side) for side in zip(logits, truths, strict=True))
    return predicted, {name: (old[name], new[name]) for name in METRICS if name in old and name in new}, notes


def _usable(schema: Schema, table: Table) -> Mask:
    """Rows that the model takes: complete ones, where it wants those, without a category that it refuses."""
    rows = np.ones(table.num_rows, dtype=np.bool_)
    for name, column in schema.columns.items():
        if isinstance(column, NumericColumn):
            empty = np.isnan(table.numbers(name))
        else:
            positions = positions_of(table.texts(name), column.categories)
            empty = positions == EMPTY
            if column.unseen == "error":
                rows &= positions != UNSEEN
        if schema.missing_rows == "drop":
            rows &= ~empty
    return rows


def _logits(trained: Trained, schema: Schema, table: Table) -> Tensor:
    import torch

    from tacit.inference.inputs import inputs_of

    reader = inputs_of(trained)
    raw = {
        name: table.numbers(name)
        if isinstance(column, NumericColumn)
        else np.array([cell or "" for cell in table.texts(name)], dtype=object)
        for name, column in schema.columns.items()
    }
    with torch.inference_mode():
        logits: Tensor = trained.model(reader.features()(*reader.tensors(raw)))
    return logits


def _scores(then: Tensor, now: Tensor) -> tuple[Bins, Bins]:
    """Of two classes the second one's probability by deciles; of more the class that is predicted."""
    if then.shape[1] > 2:
        return then.argmax(-1).numpy(), now.argmax(-1).numpy()
    old, new = (side.double().softmax(-1)[:, 1].numpy() for side in (then, now))
    return cut(old, new)


def _truths(schema: Schema, table: Table) -> Bins:
    """Classes by row, `EMPTY` where nobody knows yet; `DataError` for another name."""
    truths = positions_of(table.texts(schema.label), schema.classes)
    for row in np.flatnonzero(truths == UNSEEN)[:1]:
        raise table.error(f"is none of the {len(schema.classes)} classes", row=int(row), column=schema.label)
    return truths


def _metrics(trained: Trained, logits: Tensor, truths: Bins) -> dict[str, float]:
    import torch

    from tacit.tasks import Records
    from tacit.tasks.cells import cells_of
    from tacit.tasks.measures import measured

    cells = cells_of(trained.experiment, trained.task, always=True)
    assert cells is not None  # of a task with classes
    cells = replace(cells, groups=("",), group_features=())
    known = torch.from_numpy(truths != EMPTY)
    records = Records(logits[known], torch.from_numpy(truths)[known])
    tables = cells.tables(cells.count(logits[known], records))
    assert tables is not None
    return measured(cells, tables, smallest_group=1).metrics


def show(found: Monitored, *, as_json: bool) -> None:
    """Prints it: as a table with sentences, or as one JSON document."""
    if as_json:
        columns = [
            {**asdict(c), "drift": {**c.drift._asdict(), "state": c.drift.state}} for c in found.columns
        ]
        print(json.dumps({"drifted": found.drifted, **asdict(found), "columns": columns}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table as Shown
    from rich.text import Text

    colours = {"stable": "green", "chance": "green", "watch": "yellow", "drifted": "red"}
    table = Shown(box=None, pad_edge=False)
    for heading in ("", "column", "PSI", "chance", "99.9 %", "empty then", "now", "unseen"):
        table.add_column(heading, justify="left" if heading in ("", "column") else "right")
    for column in found.columns:
        moved = column.drift
        figures = (f"{moved.psi:.3f}", f"{moved.expected:.3f}", f"{moved.by_chance:.3f}")
        empty = (f"{100 * share:.1f} %" for share in column.missing)
        state = Text(moved.state, colours[moved.state])
        table.add_row(state, Text(column.name), *figures, *empty, str(column.unseen or ""))
    console = Console(highlight=False)
    console.print(table)
    for line in _sentences(found):
        console.print(Text(line), soft_wrap=True)


def _sentences(found: Monitored) -> list[str]:
    then, now = found.rows
    whose = "the site's test records" if found.held_out else "the records it was trained on"
    lines = [f"{then} training rows, {now} new; predictions then are of {whose}"]
    lines += [f"{name}: {old:.3f} then, {new:.3f} now" for name, (old, new) in found.metrics.items()]
    if now < FEW:
        lines.append(
            f"fewer than {FEW} new rows: much of a PSI is chance; compare it with the columns beside it"
        )
    names = [column.name for column in found.columns if column.drift.state == "drifted"]
    verdict = f"drifted: {', '.join(names)}" if names else "nothing has drifted"
    return [*lines, *found.notes, verdict]
