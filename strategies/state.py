"""A strategy's state as named arrays, so that a run can stop and go on with any Flower strategy."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from tacit.errors import ConfigError

_SEPARATOR = "\x1f"
Entries = list[tuple[str, NDArray[Any]]]


def check_resumable(strategy: Strategy) -> None:
    """Raises `ConfigError` when the strategy holds state other than arrays, numbers and constants."""
    for name, value in vars(strategy).items():
        if not (_is_constant(value) or _taken_apart(value) is not None):
            raise ConfigError(
                f"{type(strategy).__name__} keeps {type(value).__name__} in {name!r}, which cannot be saved: "
                "this strategy cannot resume",
                key="strategy.name",
            )


def save_state(strategy: Strategy) -> dict[str, NDArray[Any]]:
    """All arrays and numbers that the strategy holds, by attribute, kind, place and name.

    Raises:
        ConfigError: it holds something else by now.
    """
    check_resumable(strategy)
    saved: dict[str, NDArray[Any]] = {}
    for name, value in vars(strategy).items():
        kind, entries = _taken_apart(value) or ("", [])
        for place, (key, array) in enumerate(entries):
            saved[_SEPARATOR.join((name, kind, f"{place:06d}", key))] = array
    return saved


def restore_state(strategy: Strategy, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Puts saved arrays and numbers back where `save_state` found them, in the order that they had."""
    found: dict[tuple[str, str], Entries] = {}
    for saved in sorted(arrays):
        name, kind, _, key = saved.split(_SEPARATOR, 3)
        found.setdefault((name, kind), []).append((key, arrays[saved]))
    for (name, kind), entries in found.items():
        setattr(strategy, name, _put_together(kind, entries))


def _is_constant(value: object) -> bool:
    # A text, a function or None may be replaced but not changed; of other objects nobody knows.
    return value is None or isinstance(value, str) or inspect.isroutine(value) or inspect.isclass(value)


def _taken_apart(value: object) -> tuple[str, Entries] | None:
    """The kind of an attribute, and its arrays and numbers by name; None when it is something else."""
    if isinstance(value, bool | int | float):  # a learning rate that decays is state
        kind, entries = "number", [("", np.array(value))]
    elif isinstance(value, np.ndarray):
        kind, entries = "array", [("", value)]
    elif isinstance(value, ArrayRecord):
        kind, entries = "record", [(name, array.numpy()) for name, array in value.items()]
    elif isinstance(value, list):
        kind, entries = "list", [("", entry) for entry in value]
    elif isinstance(value, dict) and all(isinstance(name, str) for name in value):
        kind, entries = "dict", list(value.items())
    else:
        return None
    storable = all(isinstance(array, np.ndarray) and array.dtype != object for _, array in entries)
    return (kind, entries) if storable else None


def _put_together(kind: str, entries: Entries) -> Any:
    """The reverse of `_taken_apart`."""
    arrays = [array for _, array in entries]
    if kind == "record":
        return ArrayRecord({name: Array(array) for name, array in entries})
    if kind == "dict":
        return dict(entries)
    if kind == "list":
        return arrays
    return arrays[0].item() if kind == "number" else arrays[0]
