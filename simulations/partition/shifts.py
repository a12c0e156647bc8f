"""Applies `[[partition.shifts]]`: what is different at which site beyond the rows that it has.

Guarantees:
    The same seed gives the same shifts, in any process.
    A shift changes only the sites, rows and columns that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from simulations.partition.classes import class_indices
from simulations.partition.kinds import check_numeric, numeric_columns, readable, readings
from simulations.partition.library import points
from simulations.partition.site_rows import Affine
from tacit import shifts as s
from tacit.data.schema import CategoricalColumn, NumericColumn, Schema, match_key
from tacit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pandas import DataFrame

Random = np.random.Generator
Frames = list["DataFrame"]
Indices = Sequence[int]
Apply = Callable[[Any, Frames, Indices, Schema, Callable[[int], Random]], Frames]


def shifted(
    frames: Frames, labels: Sequence[str], schema: Schema, shifts: Sequence[s.AnyShift], seed: int
) -> Frames:
    """The sites' rows after all shifts, in their order; the frames that come in are left as they are.

    Args:
        frames: rows of each site.
        labels: its name, in the same order.
        schema: what the columns mean.
        shifts: in the order in which they happen.
        seed: the experiment's.

    Raises:
        ConfigError: a shift names a site or a column that there is not, or one of the wrong kind.
        DataError: a column does not hold what the shift needs.
    """
    for number, shift in enumerate(shifts):
        where = acting(shift, number, labels, seed)

        def random(site: int, number: int = number) -> Random:
            return np.random.Generator(np.random.PCG64([seed, number + 1, site + 1]))

        try:
            _check_columns(shift, schema, frames[0])
            frames = APPLY[type(shift)](shift, frames, where, schema, random)
        except ValueError as error:
            raise ConfigError(str(error), key=_key(number)) from None
    return frames


def acting(shift: s.Shift, number: int, labels: Sequence[str], seed: int) -> list[int]:
    """Positions of the sites that a shift is for, ascending; `ConfigError` where it names one that there is not."""
    for label in shift.sites:
        if label not in labels:
            known = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
            raise ConfigError(f"there is no site {label!r}; there are {known}", key=f"{_key(number)}.sites")
    if shift.sites:
        return sorted({labels.index(label) for label in shift.sites})
    if shift.share is None:
        return list(range(len(labels)))
    rng = np.random.Generator(np.random.PCG64([seed, number + 1, 0]))
    count = max(1, round(shift.share * len(labels)))
    return sorted(rng.choice(len(labels), size=count, replace=False).tolist())


def attendance(
    shifts: Sequence[s.AnyShift], labels: Sequence[str], seed: int, rounds: int
) -> dict[str, dict[str, int]]:
    """`joins` and `leaves` of each site that has any, by label.

    Raises:
        ConfigError: a round after the last one, or two entries that say the same of one site.
    """
    found: dict[str, dict[str, int]] = {}
    for number, shift in enumerate(shifts):
        if not isinstance(shift, s.Joins | s.Leaves):
            continue
        if shift.round > rounds:
            raise ConfigError(f"round {shift.round} of a run that has {rounds}", key=f"{_key(number)}.round")
        for position in acting(shift, number, labels, seed):
            own = found.setdefault(labels[position], {})
            if shift.kind in own:
                raise ConfigError(f"{labels[position]!r} {shift.kind} twice", key=_key(number))
            own[shift.kind] = shift.round
    return found


def _key(number: int) -> str:
    return f"partition.shifts.{number}"


def _check_columns(shift: s.AnyShift, schema: Schema, frame: DataFrame) -> None:
    """Raises `ValueError` where the schema has no such column, or one of another kind."""
    wanted = getattr(shift, "columns", ())
    numeric = isinstance(shift, s.Scanner | s.Unit | s.Drift)
    for name in wanted:
        column = schema.columns.get(name)
        if column is None:
            raise ValueError(f"the schema has no column {name!r}")
        if numeric and not isinstance(column, NumericColumn):
            raise ValueError(f"column {name!r} is not numeric")
    if numeric:
        check_numeric(frame, schema, wanted or numeric_columns(schema))


def _at(frames: Frames, where: Indices, change: Callable[[int, DataFrame], DataFrame]) -> Frames:
    """The frames, those of some sites replaced by a changed copy."""
    return [change(i, frame.copy()) if i in set(where) else frame for i, frame in enumerate(frames)]


def _scanner(
    shift: s.Scanner, frames: Frames, where: Indices, schema: Schema, random: Callable[[int], Random]
) -> Frames:
    stated = shift.gain is not None or "offset" in shift.model_fields_set

    def change(site: int, frame: DataFrame) -> DataFrame:
        rng = random(site)
        own = _stated(schema, shift) if stated else readings(schema, shift.strength, rng)
        for name in shift.columns or numeric_columns(schema):
            values, (low, high) = _numbers(frame, name), readable(schema, name)
            read = own[name].read(values)
            blurred = read + rng.normal(0.0, shift.noise * (high - low) / 2, len(read))
            frame[name] = np.clip(blurred, low, high) if shift.noise else read
        return frame

    return _at(frames, where, change)


def _stated(schema: Schema, shift: s.Scanner) -> dict[str, Affine]:
    """The same gain, about the middle of the range, and offset for each column."""
    gain = shift.gain or 1.0
    ends = {name: readable(schema, name) for name in numeric_columns(schema)}
    return {
        name: Affine(gain, (low + high) / 2 * (1 - gain) + shift.offset, low, high)
        for name, (low, high) in ends.items()
    }


def _unit(
    shift: s.Unit, frames: Frames, where: Indices, schema: Schema, random: Callable[[int], Random]
) -> Frames:
    def change(site: int, frame: DataFrame) -> DataFrame:
        for name in shift.columns:
            frame[name] = shift.factor * _numbers(frame, name) + shift.offset
        return frame

    return _at(frames, where, change)


def _coding(
    shift: s.Coding, frames: Frames, where: Indices, schema: Schema, random: Callable[[int], Random]
) -> Frames:
    column = schema.columns.get(shift.column)
    if shift.column != schema.label and not isinstance(column, CategoricalColumn):
        raise ValueError(f"column {shift.column!r} is neither categorical nor the label")
    known = column.categories if isinstance(column, CategoricalColumn) else schema.classes
    targets = {match_key(name) for name in known}
    strict = not isinstance(column, CategoricalColumn) or column.unseen == "error"
    for old, new in shift.codes.items():
        if match_key(old) not in targets or (strict and match_key(new) not in targets):
            wrong = old if match_key(old) not in targets else new
            raise ValueError(f"{wrong!r} is none of the names of {shift.column!r}")
    codes = {match_key(old): new for old, new in shift.codes.items()}

    def change(site: int, frame: DataFrame) -> DataFrame:
        written = random(site).random(len(frame)) < shift.rate
        old = frame[shift.column]
        new = [codes.get(match_key(str(value))) for value in old]
        if {type(value) for value in old} <= {int, np.int64}:
            new = [value if value is None else int(value) for value in new]  # type: ignore[misc]
        chosen = [b if hit and b is not None else a for a, b, hit in zip(old, new, written, strict=True)]
        frame[shift.column] = chosen
        return frame

    return _at(frames, where, change)


def _drift(
    shift: s.Drift, frames: Frames, where: Indices, schema: Schema, random: Callable[[int], Random]
) -> Frames:
    times = [_times(frame, shift.by) for frame in frames]
    first = min(float(t.min()) for t in times if len(t))
    length = max(float(t.max()) for t in times if len(t)) - first

    def change(site: int, frame: DataFrame) -> DataFrame:
        passed = (times[site] - first) / length if length else np.zeros(len(frame))
        for name in shift.columns or numeric_columns(schema):
            low, high = readable(schema, name)
            moved = _numbers(frame, name) + shift.strength * (high - low) / 2 * passed
            frame[name] = np.clip(moved, low, high)
        return frame

    return _at(frames, where, change)


def _times(frame: DataFrame, by: str) -> NDArray[np.float64]:
    if not by:
        return np.linspace(0.0, 1.0, len(frame))
    if by not in frame.columns:
        raise ValueError(f"the table has no column {by!r}")
    return points(frame[by])


def _missing(
    shift: s.Missing, frames: Frames, where: Indices, schema: Schema, random: Callable[[int], Random]
) -> Frames:
    label = shift.label or schema.classes[-1]
    if label not in schema.classes:
        raise ValueError(f"there is no class {label!r}")

    def change(site: int, frame: DataFrame) -> DataFrame:
        rng = random(site)
        for name in shift.columns:
            ratios = shift.ratio ** _likelier(shift, frame, name, schema, label)
            # Weighted without replacement: the largest of log(u) / weight (Efraimidis and Spirakis 2006).
            order = np.argsort(-np.log(rng.random(len(frame))) / ratios)
            lost = order[: round(shift.rate * len(frame))]
            frame[name] = frame[name].mask(np.isin(np.arange(len(frame)), lost))
        return frame

    return _at(frames, where, change)


def _likelier(
    shift: s.Missing, frame: DataFrame, name: str, schema: Schema, label: str
) -> NDArray[np.float64]:
    """From 0, the least likely to lose its cell, to 1, shape (rows,)."""
    if shift.depends == "label":
        is_label: NDArray[np.float64] = np.asarray(
            class_indices(frame, schema) == schema.classes.index(label), dtype=np.float64
        )
        return is_label
    if shift.depends == "nothing" or len(frame) < 2:
        return np.zeros(len(frame))
    column = schema.columns[name]
    if isinstance(column, NumericColumn):
        ranks = frame[name].rank(method="average", na_option="top")
    else:  # in the order of the declared names: stages and grades are
        order = {match_key(c): i for i, c in enumerate(column.categories)}
        ranks = frame[name].map(lambda value: order.get(match_key(str(value)), -1)).rank(method="average")
    positions: NDArray[np.float64] = ((ranks - 1) / (len(frame) - 1)).to_numpy(dtype=np.float64)
    return positions


def _duplicates(
    shift: s.Duplicates, frames: Frames, where: Indices, schema: Schema, random: Callable[[int], Random]
) -> Frames:
    import pandas

    if len(frames) < 2:
        raise ValueError("there is no other site whose rows could be copied")
    sizes = np.array([len(frame) for frame in frames])

    def change(site: int, frame: DataFrame) -> DataFrame:
        others = pandas.concat([f for i, f in enumerate(frames) if i != site], ignore_index=True)
        count = min(max(1, round(shift.rate * sizes[site])), len(others))
        chosen = np.sort(random(site).choice(len(others), size=count, replace=False))
        return pandas.concat([frame, others.iloc[chosen]], ignore_index=True)

    return _at(frames, where, change)


def _unchanged(
    shift: s.Joins | s.Leaves, frames: Frames, where: Indices, schema: Schema, random: Callable[[int], Random]
) -> Frames:
    return frames  # about rounds and not rows: `attendance`


def _numbers(frame: DataFrame, name: str) -> NDArray[np.float64]:
    try:
        values: NDArray[np.float64] = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise DataError("a shift of its readings needs a column of numbers", column=name) from None
    return values


APPLY: Final[Mapping[type, Apply]] = {
    s.Scanner: _scanner,
    s.Unit: _unit,
    s.Coding: _coding,
    s.Drift: _drift,
    s.Missing: _missing,
    s.Duplicates: _duplicates,
    s.Joins: _unchanged,
    s.Leaves: _unchanged,
}
