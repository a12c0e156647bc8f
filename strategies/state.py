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


def check_resumable(strategy: Strategy) -> None:
    """Raises `ConfigError` when the strategy holds state other than arrays, numbers and constants."""
    for name, value in vars(strategy).items():
        if not (_is_constant(value) or _entries(value) is not None):
            raise ConfigError(
                f"{type(strategy).__name__} keeps {type(value).__name__} in {name!r}, which cannot be saved: "
                "this strategy cannot resume",
                key="strategy.name",
            )


def save_state(strategy: Strategy) -> dict[str, NDArray[Any]]:
    """All arrays and numbers that the strategy holds, by attribute and name.

    Raises:
        ConfigError: it holds something else by now.
    """
    check_resumable(strategy)
    return {
        f"{name}{_SEPARATOR}{key}": array
        for name, value in vars(strategy).items()
        for key, array in (_entries(value) or {}).items()
    }


def restore_state(strategy: Strategy, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Puts saved arrays and numbers back where `save_state` found them."""
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for key, array in arrays.items():
        name, _, entry = key.partition(_SEPARATOR)
        found.setdefault(name, {})[entry] = array
    for name, entries in found.items():
        if set(entries) == {"[number]"}:
            setattr(strategy, name, entries["[number]"].item())
        elif set(entries) == {"[array]"}:
            setattr(strategy, name, entries["[array]"])
        elif all(entry.startswith("[record]") for entry in entries):
            named = {entry.removeprefix("[record]"): Array(a) for entry, a in entries.items()}
            setattr(strategy, name, ArrayRecord(named))
        else:
            setattr(strategy, name, entries)


def _is_constant(value: object) -> bool:
    # A text, a function or None may be replaced but not changed; of other objects nobody knows.
    return value is None or isinstance(value, str) or inspect.isroutine(value) or inspect.isclass(value)


def _entries(value: object) -> dict[str, NDArray[Any]] | None:
    """The arrays and numbers in an attribute by name; None when it is something else."""
    if isinstance(value, bool | int | float):  # a learning rate that decays is state
        number = np.array(value)
        return {"[number]": number} if number.dtype != object else None
    if isinstance(value, np.ndarray):
        return {"[array]": value} if value.dtype != object else None
    if isinstance(value, ArrayRecord):
        return {f"[record]{name}": array.numpy() for name, array in value.items()}
    if isinstance(value, dict) and all(
        isinstance(k, str) and isinstance(v, np.ndarray) and v.dtype != object for k, v in value.items()
    ):
        return dict(value)
    return None
