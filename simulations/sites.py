"""The folders that stand for the sites of a simulation: sites/0/data.csv and site.toml, sites/1/ and so on.

A simulated site reads its folder just as a real one reads its own disk; nothing else tells it what it has.

Guarantees:
    Every row of the table is in exactly one site's file, but for copies that a shift "duplicates" asks for.
    Rows that are held out are never declared as rows to train on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from simulations.partition import partition
from simulations.partition.classes import class_indices, is_missing
from simulations.partition.distances import distances
from simulations.partition.folders import csv_bytes, store
from simulations.partition.library import points
from simulations.partition.shifts import attendance, shifted
from simulations.partition.split import held_out, latest
from tacit.config import Data, Experiment, Federation, Partition, Population, Site
from tacit.data.schema import SPLITS, Schema
from tacit.errors import ConfigError, DataError
from tacit.report.record import SiteDistances
from tacit.shifts import Duplicates
from tacit.toml import first_problem

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.table import Table

    from simulations.array_sources import ArraySet

MOST_LINES = 30  # of a table in the terminal


@dataclass(frozen=True)
class PreparedSite:
    """What one site was given. Exact counts: the harness may know them, a server may not.

    Attributes:
        label: the site's name.
        rows: all rows.
        train_rows: rows to train on; declared to the federation.
        test_rows: rows held out.
        label_counts: rows per class, per split: `label_counts["train"]["1"]`.
    """

    label: str
    rows: int
    train_rows: int
    test_rows: int
    label_counts: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class PreparedSites:
    """The sites of a simulation, on disk.

    Attributes:
        folder: holds one folder per site, named 0, 1, 2...
        sites: what each was given, in the same order.
        experiment: the experiment with its schema complete and its federation declared.
        fingerprint: SHA-256 over that experiment and every file, in hexadecimal.
        warnings: one line each.
        distances: of the sites from one another; None of a single one.
    """

    folder: Path
    sites: tuple[PreparedSite, ...]
    experiment: Experiment
    fingerprint: str
    warnings: tuple[str, ...] = ()
    distances: SiteDistances | None = None

    def data_path(self, site: int) -> Path:
        """The file of site number `site`, from 0."""
        return self.folder / str(site) / self.experiment.data.file


def prepare_sites(
    experiment: Experiment,
    table: DataFrame,
    schema: Schema,
    out: Path,
    *,
    durable: bool = True,
    arrays: ArraySet | None = None,
) -> PreparedSites:
    """Divides `table` among sites, splits each site's rows and writes the folders under `out`/sites.

    Args:
        experiment: partition, split and seeds.
        table: all rows, empty cells as NaN or None.
        schema: the columns of `table`; replaces the experiment's own.
        out: the run's folder; may hold the sites of an earlier call with the same experiment and data.
        durable: whether the sites wait for the disk at each debit, as a site that is no simulated one must.
        arrays: where records are arrays, those that the rows of `table` stand for.

    Raises:
        ConfigError: the partition or the split is impossible; the experiment is, with these sites (delta too
            large for one, say); or `out` holds other sites.
        DataError: the table does not fit the schema.
        StorageError: `out` cannot be written.
    """
    table, complete = _usable(table, schema), _with_split(table, schema)
    slices, settings = partition(table, schema, experiment.partition, experiment.seed), experiment.partition
    labels, seed = [part.label for part in slices], experiment.seed
    frames = shifted([part.take(table) for part in slices], labels, schema, settings.shifts, seed)
    warnings = _notes(settings)
    for label, frame in zip(labels, frames, strict=True):
        if not schema.split:
            frame[complete.split], warning = _drawn(frame, schema, experiment.data, label)
            warnings += [warning] if warning else []
    sites = tuple(_counted(label, f, complete) for label, f in zip(labels, frames, strict=True))
    turns = attendance(settings.shifts, labels, seed, experiment.training.rounds)
    described = {"columns": complete, "arrays": None if arrays is None else arrays.schema}
    resolved = experiment.with_tables(
        data=experiment.data.model_copy(update=described),
        federation=_declared(sites, settings, turns),
    )
    file = csv_bytes if arrays is None else arrays.file
    fingerprint = store(out, resolved, labels, frames, file, durable=durable)
    apart = distances(frames, labels, schema)
    return PreparedSites(out / "sites", sites, resolved, fingerprint, tuple(warnings), apart)


def _notes(settings: Partition) -> list[str]:
    if any(isinstance(shift, Duplicates) for shift in settings.shifts):
        return [
            "some rows are at two sites: the promise is for one row, and a person with two of them has twice "
            "its epsilon; a copy may also be held out at one site and trained on at another"
        ]
    return []


def _usable(table: DataFrame, schema: Schema) -> DataFrame:
    """The rows that a site will train or test on."""
    for name in (*schema.columns, schema.label, schema.site, schema.split):
        if name and name not in table.columns:
            raise DataError("the table has no such column", column=name)
    if schema.missing_rows == "drop":
        # Before the split, so that test_fraction is a share of the rows that are used.
        for name in schema.columns:
            table = table[~is_missing(table[name])]
    if schema.split and not table[schema.split].isin(SPLITS).all():
        raise DataError('has a value other than "train" and "test"', column=schema.split)
    if table.empty:
        raise DataError("there are no rows to divide among the sites")
    return table


def _with_split(table: DataFrame, schema: Schema) -> Schema:
    """The schema with a split column, whose name must be free."""
    if schema.split:
        return schema
    if "split" in table.columns:
        raise ConfigError(
            'the table has a column "split": name it in schema.split, or rename it', key="data.schema"
        )
    return schema.model_copy(update={"split": "split"})


def _drawn(frame: DataFrame, schema: Schema, data: Data, label: str) -> tuple[NDArray[np.str_], str]:
    """ "train" or "test" for each row of one site, shape (rows,), and a warning or ""."""
    if data.split_by:
        if data.split_by not in frame.columns:
            raise ConfigError(f"the table has no column {data.split_by!r}", key="data.split_by")
        return np.where(
            latest(points(frame[data.split_by]), data.test_fraction, site=label), "test", "train"
        ), ""
    classes = class_indices(frame, schema)
    test, warning = held_out(classes, data.test_fraction, data.split_seed, site=label)
    return np.where(test, "test", "train"), warning


def _counted(label: str, frame: DataFrame, schema: Schema) -> PreparedSite:
    classes, split = class_indices(frame, schema), frame[schema.split].to_numpy()
    counts = {s: np.bincount(classes[split == s], minlength=len(schema.classes)).tolist() for s in SPLITS}
    return PreparedSite(
        label=label,
        rows=len(frame),
        train_rows=sum(counts["train"]),
        test_rows=sum(counts["test"]),
        label_counts={s: dict(zip(schema.classes, counts[s], strict=True)) for s in SPLITS},
    )


def _declared(
    sites: tuple[PreparedSite, ...], settings: Partition, turns: Mapping[str, Mapping[str, int]]
) -> Federation:
    for site in sites:
        if not site.train_rows:
            raise DataError(f"site {site.label!r} has no row to train on")
    if settings.kind == "virtual":  # what lies in the one folder is what the clients draw from
        return Federation(population=Population(size=settings.num_clients, rows=settings.rows))
    try:
        return Federation(
            sites=tuple(
                Site(
                    label=site.label,
                    rows=site.train_rows,
                    steps=settings.steps[i % len(settings.steps)] if settings.steps else None,
                    **turns.get(site.label, {}),
                )
                for i, site in enumerate(sites)
            )
        )
    except ValidationError as error:
        raise ConfigError(first_problem(error, "").reason, key="partition.shifts") from None


def partition_table(prepared: PreparedSites) -> list[dict[str, Any]]:
    """Who got what, one entry per site, for the report.

    Returns:
        `label`, `rows`, `train_rows`, `test_rows`, `label_counts` (as in `PreparedSite`) and `shares`, the
        share of each class in the site's rows.
    """
    return [
        {
            "label": site.label,
            "rows": site.rows,
            "train_rows": site.train_rows,
            "test_rows": site.test_rows,
            "label_counts": {split: dict(counts) for split, counts in site.label_counts.items()},
            "shares": {
                name: sum(site.label_counts[s][name] for s in SPLITS) / site.rows
                for name in site.label_counts["train"]
            },
        }
        for site in prepared.sites
    ]


def terminal_table(prepared: PreparedSites) -> Table:
    """The same for the terminal: the first sites, and how many there are besides."""
    from rich.table import Table

    entries = partition_table(prepared)
    table = Table(title=f"{len(entries)} sites, {sum(e['rows'] for e in entries)} rows")
    table.add_column("site")
    for name in ("train", "test", *(f"class {c}" for c in entries[0]["shares"])):
        table.add_column(name, justify="right")
    for entry in entries[:MOST_LINES]:
        shares = (f"{share:.0%}" for share in entry["shares"].values())
        table.add_row(entry["label"], str(entry["train_rows"]), str(entry["test_rows"]), *shares)
    if len(entries) > MOST_LINES:
        table.add_row(f"and {len(entries) - MOST_LINES} more")
    return table
