"""A population that is a rule, not a list: so many clients that nobody writes them down.

Clients are numbered from 0 and called after their number; all declare the same number of records. Everything here
answers for one client when it is asked, and holds none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, overload

PREFIX: Final = "client-"


class Labels(Sequence[str]):
    """client-0, client-1 and so on.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> list[str]: ...

    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [f"{PREFIX}{i}" for i in range(self._size)[at]]
        return f"{PREFIX}{range(self._size)[at]}"

    def index(self, label: str, start: int = 0, stop: int | None = None) -> int:
        """The number of a client; `ValueError` where there is none of this label."""
        number = label.removeprefix(PREFIX)
        if number.isdecimal() and label == f"{PREFIX}{int(number)}" and int(number) < self._size:
            return int(number)
        raise ValueError(f"there is no client {label!r}")


class Nodes(Mapping[str, int]):
    """The node id of each client, by label: consecutive numbers.

    Args:
        labels: of the clients.
        first: node id of client 0.
    """

    def __init__(self, labels: Labels, first: int) -> None:
        self.labels, self.first = labels, first

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[str]:
        return iter(self.labels)

    def __getitem__(self, label: str) -> int:
        try:
            return self.labels.index(label) + self.first
        except ValueError:
            raise KeyError(label) from None
