"""The cells of a sweep: every combination of the values of some keys.

    --over privacy.record.epsilon=1,3,8,none --over seed=1..5

`none` as an epsilon takes the promise away: the cell is not private.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tacit import config, toml
from tacit.config import Experiment
from tacit.errors import ConfigError
from tacit.report.wording import value_text

MOST_CELLS: Final = 10_000
NONE: Final = "none"
PROMISES: Final = ("privacy.record.epsilon", "privacy.client.epsilon")
_RANGE: Final = re.compile(r"(-?\d+)\.\.(-?\d+)")

Value = Any  # of TOML


@dataclass(frozen=True)
class Axis:
    """A key and the values that it goes over, in order."""

    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        values: of the keys that the sweep goes over.
        experiment: what is run.
    """

    name: str
    values: Mapping[str, Value]
    experiment: Experiment


def axes_of(over: Sequence[str], grid: Path | None = None) -> tuple[Axis, ...]:
    """The axes of `--over` options and of a `[sweep]` table in a file, those of the file first.

    Raises:
        ConfigError: what is no `key=values`, or a key or a value that stands there twice.
    """
    axes = [*(_of_file(grid) if grid else ()), *(_of_option(text) for text in over)]
    if not axes:
        raise ConfigError("name at least one key and its values, e.g. --over seed=1..5", key="--over")
    keys = [axis.key for axis in axes]
    for axis in axes:
        if keys.count(axis.key) > 1:
            raise ConfigError(f"{axis.key} is there twice", key="--over")
        if len({repr(value) for value in axis.values}) != len(axis.values):
            raise ConfigError(f"{axis.key} has a value twice", key="--over")
    return tuple(axes)


def _of_option(text: str) -> Axis:
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise ConfigError(f"{text!r} is not key=value,value,...", key="--over")
    return Axis(key.strip(), tuple(v for part in _parts(values) for v in _values(part)))


def _of_file(path: Path) -> list[Axis]:
    tables = toml.read_toml(path)
    if set(tables) != {"sweep"} or not isinstance(tables["sweep"], dict):
        raise ConfigError("needs one table [sweep] and nothing else", source=path)
    return [axis_of(key, values, path) for key, values in flat(tables["sweep"]).items()]


def axis_of(key: str, values: Any, path: Path) -> Axis:
    """A key with the values that stand behind it in a file: a list, or a range "1..5"."""
    if isinstance(values, str) and _RANGE.fullmatch(values):
        values = _values(values)
    if not isinstance(values, list) or not values:
        raise ConfigError('needs a list of values, or a range "1..5"', source=path, key=f"sweep.{key}")
    return Axis(key, tuple(values))


def flat(table: Mapping[str, Any], prefix: str = "", values: Sequence[str] = ()) -> dict[str, Any]:
    """Dotted keys of nested tables, as TOML reads `privacy.record.epsilon = [1, 3]`.

    Args:
        table: with tables in it.
        prefix: of its keys.
        values: a table with one of these names is a value, and not looked into.
    """
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict) and value.keys().isdisjoint(values):
            found |= flat(value, f"{prefix}{name}.", values)
        else:
            found[f"{prefix}{name}"] = value
    return found


def _parts(text: str) -> list[str]:
    """Cut at the commas that are in no brackets, braces or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "[{") - (letter in "]}") if not quote else 0
        if letter == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _values(text: str) -> list[Value]:
    if found := _RANGE.fullmatch(text):
        first, last = int(found[1]), int(found[2])
        if last < first or last - first >= MOST_CELLS:
            raise ConfigError(f"{text!r} is no range of at most {MOST_CELLS} numbers", key="--over")
        return list(range(first, last + 1))
    if not text:
        raise ConfigError("a value is empty", key="--over")
    return [toml.toml_value(text)]


def cells_of(source: Path, overrides: Sequence[str], axes: Sequence[Axis]) -> tuple[Cell, ...]:
    """All cells, the last axis fastest.

    Args:
        source: the experiment file.
        overrides: `key=value` for every cell.
        axes: what the cells differ in.

    Raises:
        ConfigError: too many of them, or a cell that is no possible experiment.
    """
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MOST_CELLS:
        raise ConfigError(f"{count} cells; at most {MOST_CELLS}", key="--over")
    cells = []
    for values in itertools.product(*(axis.values for axis in axes)):
        own = dict(zip((axis.key for axis in axes), values, strict=True))
        cells.append(Cell(_name(own), own, experiment_of(source, overrides, own)))
    return tuple(cells)


def experiment_of(
    source: Path,
    overrides: Sequence[str],
    own: Mapping[str, Value],
    *,
    place: str = "--over",
    what: str = "cell",
) -> Experiment:
    """The experiment of one cell; `ConfigError` names `place`, where its values come from, and the cell."""
    settings = [*overrides, *(_setting(key, value) for key, value in own.items())]
    try:
        return config.load(source, settings)
    except ConfigError as error:
        source_of = place if error.source == "--set" else error.source
        where = f" (in the {what} {told(own)})" if own else ""
        raise ConfigError(f"{error.reason}{where}", source=source_of, key=error.key) from None


def _setting(key: str, value: Value) -> str:
    if value == NONE:
        return f"{key.rpartition('.')[0] if key in PROMISES else key}=none"
    return f"{key}={json.dumps(value)}"


def told(values: Mapping[str, Value]) -> str:
    """A cell in words: "epsilon 3, seed 2"."""
    return ", ".join(f"{short(key, values)} {value_text(value)}" for key, value in values.items())


def short(key: str, among: Mapping[str, Any] | Sequence[str]) -> str:
    """The last word of a key, or all of it where another one ends alike."""
    last = key.rpartition(".")[2]
    return key if sum(other.rpartition(".")[2] == last for other in among) > 1 else last


def _name(values: Mapping[str, Value]) -> str:
    """A folder's name that says what is in it; distinct for distinct cells."""
    text = "_".join(f"{short(key, values)}-{value_text(value)}" for key, value in values.items())
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100]
    if plain == text:
        return plain
    return f"{plain}-{_digest(values)}"


def _digest(values: Mapping[str, Value]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
