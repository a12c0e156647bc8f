"""What this process asks of the disk, in order, and which names are not on it yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock


class Call(NamedTuple):
    """One call that has succeeded: "make" (file or folder), "rename" (to this path) or "fsync"."""

    kind: str
    path: Path


@contextmanager
def disk_calls() -> Iterator[list[Call]]:
    """The calls that are made within it."""
    calls: list[Call] = []

    def noting(real: Callable[..., Any], kind: str, place: int) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            was_there = os.path.lexists(str(arguments[place]))
            result = real(*arguments, **named)
            if kind == "rename" or not was_there:
                calls.append(Call(kind, Path(os.path.abspath(arguments[place]))))
            return result

        return called

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        calls.append(Call("fsync", Path(f"/proc/self/fd/{descriptor}").readlink()))

    real_fsync = os.fsync
    made = {name: noting(getattr(os, name), "make", 0) for name in ("open", "mkdir")}
    renamed = {name: noting(getattr(os, name), "rename", 1) for name in ("rename", "replace")}
    with mock.patch.multiple(os, fsync=fsync, **made, **renamed):
        yield calls


def unnamed(calls: Iterable[Call]) -> set[Path]:
    """What was made or renamed, and may be gone after a power failure: the folder around it was not synced since."""
    found: set[Path] = set()
    for call in calls:
        if call.kind == "fsync":
            found = {path for path in found if path.parent != call.path}
        else:
            found.add(call.path)
    return found
