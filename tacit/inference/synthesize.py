"""`tacit synthesize`: a table of rows that a run's generator makes up, and how good and how private they look."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tacit.errors import ConfigError, DataError
from tacit.inference.command import RunFolder

if TYPE_CHECKING:
    from tacit.config import Experiment
    from tacit.data.schema import Schema
    from tacit.data.table import Table
    from tacit.inference.closeness import Closeness
    from tacit.inference.fidelity import Fidelity
    from tacit.report.record import PrivacyEntry

CONFIDENTIAL: Final = (
    "These figures are of raw records, and nothing has paid for them: keep them where the records are."
)


def synthesize(
    run: RunFolder,
    rows: Annotated[int, typer.Option(min=1, max=10_000_000, help="How many to make up.")] = 1000,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What to write: CSV, or Parquet by its name.",
            show_default="RUN/synthetic.csv",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same one gives the same file.")] = 0,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='Real rows to compare with; with a split column, those of "test".'),
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Real rows that were trained on, where --data has no split column."
        ),
    ] = None,
) -> None:
    """Make up a table like the one that a run of kind "tabular_synthesis" was trained on.

    Rows come from the run's generator alone and are as private as its model is:
    they cost nothing more, however many there are. A run without privacy gives no
    promise for them either. Classes are drawn by task.class_shares, all alike if
    the experiment declares none.

    With --data the file is compared with real rows: each column's distribution,
    correlations, and what a model learns from it. With rows that were trained on
    and others that were not, how close the made-up ones come to the first. These
    figures are of raw records: do this at the site, and leave them there.

    \b
    tacit synthesize runs/my --rows 5000 --out synthetic.csv
    tacit synthesize runs/my --data data.csv
    tacit synthesize runs/my --data holdout.csv --train data.csv
    """
    import torch

    from tacit.data.readers import read_table
    from tacit.inference.synthetic import made_up, synthesis_of, write_rows
    from tacit.inference.trained import Trained

    if train is not None and data is None:
        raise ConfigError("belongs to --data FILE, rows that were not trained on", key="--train")
    path = out or run / "synthetic.csv"
    if path.suffix == ".json":
        raise ConfigError(
            "rows are .csv, .tsv or .parquet; figures come beside them", source=path, key="--out"
        )
    for other in (data, train):
        if other is not None and path.exists() and other.exists() and path.samefile(other):
            raise ConfigError("is the file of real rows: choose another name", source=path, key="--out")
    torch.set_num_threads(1)
    sys.path.append(str(Path.cwd()))
    trained = Trained.open(run)
    schema = synthesis_of(trained).schema
    real = None if data is None else RealRows.read(data, train, schema)
    write_rows(made_up(trained, rows, seed), schema, path)
    typer.echo(f"{rows} rows: {path}")
    promises = _promises(trained.experiment)
    for line in _told(promises):
        typer.echo(line)
    if real is None:
        return
    whole = schema.model_copy(update={"split": ""})
    figures = Figures.of(read_table(path, whole), real, whole)
    beside = path.with_suffix(".json")
    _write(beside, {"run": trained.experiment.name, "rows": rows, "seed": seed}, promises, figures)
    _show(figures, promises)
    typer.echo(f"figures: {beside}\n{CONFIDENTIAL}")


@dataclass(frozen=True)
class RealRows:
    """Rows of a site: such as were not trained on, as far as is known, and such as were, if there are any."""

    held_out: Table
    trained_on: Table | None

    @classmethod
    def read(cls, data: Path, train: Path | None, schema: Schema) -> RealRows:
        """Of one file with a split column, or of two.

        Raises:
            DataError: a file cannot be used, or no row of it is left.
        """
        whole = schema.model_copy(update={"split": ""})
        if train is not None or not schema.split:
            return cls(_rows(data, whole, "train"), None if train is None else _rows(train, whole, "train"))
        return cls(_rows(data, schema, "test"), _rows(data, schema, "train"))


def _rows(path: Path, schema: Schema, split: str) -> Table:
    from tacit.data.preprocessing import selected_rows
    from tacit.data.readers import read_table

    table = read_table(path, schema)
    rows = selected_rows(table, schema, split)
    if not rows.any():
        raise DataError(
            f'has no complete row of split "{split}"' if schema.split else "has no complete row", path=path
        )
    return table.where(rows)


@dataclass(frozen=True)
class Figures:
    """All that is said of a made-up table.

    Attributes:
        fidelity: beside rows that were held out.
        reference: distance of each column between real rows that were trained on and held out; empty without both.
        closeness: None without both.
    """

    fidelity: Fidelity
    reference: dict[str, float]
    closeness: Closeness | None

    @classmethod
    def of(cls, made: Table, real: RealRows, schema: Schema) -> Figures:
        """Figures of a table that has been written and read."""
        from tacit.inference.closeness import closeness
        from tacit.inference.fidelity import column_distance, fidelity

        found = fidelity(made, real.held_out, real.trained_on, schema)
        if real.trained_on is None:
            return cls(found, {}, None)
        apart = {
            name: column_distance(real.trained_on, real.held_out, name, schema) for name in found.columns
        }
        return cls(found, apart, closeness(made, real.trained_on, real.held_out, schema))


def _promises(experiment: Experiment) -> tuple[PrivacyEntry, ...]:
    """What the run has promised, from its own plan."""
    from tacit.privacy.plan import PrivacyPlan
    from tacit.report.promises import privacy_entries
    from tacit.report.rows import secure_sum_of

    secure = secure_sum_of(experiment.secure_aggregation, [])
    return privacy_entries(experiment, PrivacyPlan.of(experiment), None, secure=secure, simulation=False)


def _told(promises: tuple[PrivacyEntry, ...]) -> Iterator[str]:
    import math

    from tacit.report.wording import upper

    for entry in promises:
        if math.isfinite(entry.epsilon):
            yield (
                f"epsilon {upper(entry.epsilon)}, delta {upper(entry.delta)} per {entry.unit}: those of the run; rows "
                "made up of its model add nothing to them (post-processing)"
            )
        else:
            yield "NOT PRIVATE: epsilon is infinite. These rows may reveal records that the run was trained on"


def _write(path: Path, about: dict[str, Any], promises: tuple[PrivacyEntry, ...], figures: Figures) -> None:
    from tacit.report.storage import write_text

    content = {
        **about,
        "confidential": CONFIDENTIAL,
        "privacy": [
            entry.model_dump(mode="json", include={"unit", "epsilon", "delta"}) for entry in promises
        ],
        **asdict(figures),
    }
    write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def _show(figures: Figures, promises: tuple[PrivacyEntry, ...]) -> None:
    from rich.console import Console
    from rich.table import Table as Shown
    from rich.text import Text

    table = Shown(box=None, pad_edge=False)
    table.add_column("column")
    table.add_column("distance", justify="right")
    if figures.reference:
        table.add_column("of real rows", justify="right")
    for name, distance in figures.fidelity.columns.items():
        beside = [f"{figures.reference[name]:.3f}"] if figures.reference else []
        table.add_row(Text(name), f"{distance:.3f}", *beside)
    console = Console(highlight=False)
    console.print(table)
    for line in [*_fidelity_lines(figures), *_closeness_lines(figures, promises), *figures.fidelity.notes]:
        console.print(Text(line), soft_wrap=True)


def _fidelity_lines(figures: Figures) -> Iterator[str]:
    found = figures.fidelity
    distances = list(found.columns.values())
    yield (
        f"columns differ by {sum(distances) / len(distances):.3f} on average, from 0 to 1; correlations by "
        f"{found.correlation:.3f}"
    )
    if found.auroc_synthetic is not None and found.auroc_real is not None:
        yield (
            f"AUROC on real rows: {found.auroc_synthetic:.3f} learned from the made-up ones, "
            f"{found.auroc_real:.3f} learned from real ones"
        )


def _closeness_lines(figures: Figures, promises: tuple[PrivacyEntry, ...]) -> Iterator[str]:
    import math

    from tacit.inference.closeness import most_advantage

    found = figures.closeness
    if found is None:
        yield "how close they come to records that were trained on is not known: name those with --train FILE"
        return
    copies, held_out = 100 * found.copies, 100 * found.copies_held_out
    yield f"copies of records trained on: {copies:.2f} % of the made-up rows, {held_out:.2f} % of held-out ones"
    yield (
        f"median distance to the closest record trained on: {found.distance:.3f} from a made-up row, "
        f"{found.distance_held_out:.3f} from a held-out one"
    )
    yield (
        f"guessing by closeness who was trained on: advantage {found.advantage:.3f}, and below "
        f"{found.advantage_by_chance:.3f} where nothing can be told"
    )
    for entry in promises:
        if entry.unit == "record" and math.isfinite(entry.epsilon):
            most = most_advantage(entry.epsilon, entry.delta)
            yield f"the run's epsilon allows no test an advantage above {most:.3f}"
