"""What a search goes over: the `[tuning]` table of a file of its own, and the values that each key may take.

[tuning.space]
training.learning_rate = {low = 0.1, high = 10.0, log = true}
training.local_steps = "1..5"
task.model.hidden = [[8], [16], [16, 8]]
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from simulations.sweep.grid import MOST_CELLS, Axis, axis_of, experiment_of, flat
from tacit import toml
from tacit.config import Experiment
from tacit.data.schema import Frozen
from tacit.errors import ConfigError

SPACE: Final = "tuning.space"
ENDS: Final = ("low", "high")  # a table with these is a range, and no more keys below this one


class Range(Frozen):
    """A key and the numbers from `low` to `high`: whole ones where both are, evenly by their logarithm with `log`."""

    key: str
    low: int | float
    high: int | float
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the numbers are whole."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Dimension = Range | Axis


class Tuning(Frozen):
    """`[tuning]`: where good values are looked for, how, and how what it costs is counted.

    Attributes:
        method: "random" = values are drawn; "grid" = every combination of lists; "bayesian" = each trial follows from
            those before it (Optuna's TPE).
        trials: how many; with `accounting = "private"` how many to expect. 0 = 20, and of a grid all.
        metric: what is to be best; "" = the main one of the task. Loss and the like are better lower.
        round: whose value counts: of the last round, or of the best one.
        seed: draws the trials' values; not with `accounting = "private"`, where nobody may know them beforehand.
        accounting: "none" = the search is not counted, and the report says so; "public" = you state that these data
            are public or synthetic; "private" = it is counted, by a random number of trials.
        eta: shape of that number's distribution: 1 = geometric, 0 = logarithmic, which costs less and varies more.
        space: key of an experiment -> its values.
    """

    method: Literal["random", "grid", "bayesian"] = "random"
    trials: Annotated[int, Field(ge=0, le=MOST_CELLS)] = 0
    metric: str = ""
    round: Literal["last", "best"] = "last"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    accounting: Literal["none", "public", "private"] = "none"
    eta: Annotated[float, Field(ge=0, le=100)] = 1.0
    space: Annotated[dict[str, Any], Field(min_length=1)]


DEFAULT_TRIALS: Final = 20


def tuning_of(path: Path) -> tuple[Tuning, tuple[Dimension, ...]]:
    """The settings of a file with a table `[tuning]`, and its space.

    Raises:
        ConfigError: one line that names the key and what is wrong.
    """
    tables = toml.read_toml(path)
    if set(tables) != {"tuning"} or not isinstance(tables["tuning"], dict):
        raise ConfigError("needs one table [tuning] and nothing else", source=path)
    try:
        tuning = toml.validated(Tuning, tables["tuning"], str(path))
    except ConfigError as error:
        raise ConfigError(error.reason, source=path, key=f"tuning.{error.key}") from None
    dimensions = tuple(_dimension(key, value, path) for key, value in flat(tuning.space, "", ENDS).items())
    if tuning.method == "grid":
        _check_grid(tuning, dimensions, path)
    return tuning, dimensions


def _dimension(key: str, value: Any, path: Path) -> Dimension:
    if not isinstance(value, dict):
        return _axis(key, value, path)
    try:
        found = toml.validated(Range, {"key": key, **value}, str(path))
    except ConfigError as error:
        raise _wrong(path, key, f"{error.key}: {error.reason}") from None
    if not found.low < found.high:
        raise _wrong(path, key, f"low must be below high, and {found.low} is not below {found.high}")
    if found.log and found.low <= 0:
        raise _wrong(path, key, f"log = true needs low above 0, not {found.low}")
    return found


def _axis(key: str, value: Any, path: Path) -> Dimension:
    try:
        axis = axis_of(key, value, path)
    except ConfigError:
        wanted = 'a list of values, a range "1..5", or {low = 0.1, high = 10.0, log = true}'
        raise _wrong(path, key, f"needs {wanted}") from None
    if len({json.dumps(v) for v in axis.values}) != len(axis.values):
        raise _wrong(path, key, "has a value twice")
    if isinstance(value, str) and len(axis.values) > 1:
        return Range(key=key, low=axis.values[0], high=axis.values[-1])
    return axis


def _check_grid(tuning: Tuning, dimensions: Sequence[Dimension], path: Path) -> None:
    for dimension in dimensions:
        if isinstance(dimension, Range) and not dimension.is_whole:
            raise _wrong(
                path, dimension.key, 'a grid needs a list of values: method = "random" takes a range'
            )
    if tuning.trials:
        raise ConfigError("a grid has as many as it has combinations", source=path, key="tuning.trials")
    count = 1
    for dimension in dimensions:
        count *= len(listed(dimension))
    if count > MOST_CELLS:
        raise ConfigError(f"{count} combinations; at most {MOST_CELLS}", source=path, key=SPACE)


def _wrong(path: Path, key: str, reason: str) -> ConfigError:
    return ConfigError(reason, source=path, key=f"{SPACE}.{key}")


def listed(dimension: Dimension) -> Sequence[Any]:
    """All values of a list or of a range of whole numbers."""
    if isinstance(dimension, Range):
        return range(int(dimension.low), int(dimension.high) + 1)
    return dimension.values


def combinations(dimensions: Sequence[Dimension]) -> list[dict[str, Any]]:
    """Every combination, the last key fastest."""
    keys = [dimension.key for dimension in dimensions]
    return [dict(zip(keys, own, strict=True)) for own in itertools.product(*map(listed, dimensions))]


def ends(dimension: Dimension) -> Sequence[Any]:
    """What is tried of a dimension before anything runs: its values, or both ends of a range."""
    return (dimension.low, dimension.high) if isinstance(dimension, Range) else dimension.values


class Trials:
    """Makes the experiments of trials.

    Args:
        source: the experiment file.
        overrides: `key=value` for every trial.
        file: with the space, for errors.
        round: whose value counts.
    """

    def __init__(self, source: Path, overrides: Sequence[str], file: Path, *, round: str = "last") -> None:
        self._source, self._overrides, self._file = source, tuple(overrides), file
        # Baselines do not choose a trial. Only from all checkpoints is there a value for each round.
        self._own = ("simulation.baselines=false", *(["checkpoints.keep=0"] if round == "best" else []))

    def best(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment with these values and nothing else changed."""
        return self._of(self._overrides, values)

    def trial(self, values: Mapping[str, Any]) -> Experiment:
        """What a trial runs; `ConfigError` where the values do not go together."""
        return self._of((*self._own, *self._overrides), values)

    def _of(self, overrides: Sequence[str], values: Mapping[str, Any]) -> Experiment:
        return experiment_of(self._source, overrides, values, place=str(self._file), what="trial")

    def corners(self, dimensions: Sequence[Dimension]) -> list[tuple[str, Experiment]]:
        """The experiment with one key at a time at each of its ends.

        Raises:
            ConfigError: a key that there is not, or a value that it cannot have.
        """
        return [(d.key, self.trial({d.key: value})) for d in dimensions for value in ends(d)]
