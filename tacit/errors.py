"""The exceptions of Tacit, one tree.

An error says whose fault it was, because that decides what happens next: ours at start-up (`ConfigError`,
`DataError`: one line, exit code 2), a peer's on the wire (`ProtocolError` with a reason code: the message is
refused and the process goes on), the budget's (`PrivacyBudgetExceeded`: the site refuses from here on).
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class TacitError(Exception):
    """Root of the tree. `exit_code` is what a command ends with when nobody handles the error."""

    exit_code = 1


class ConfigError(TacitError):
    """A configuration that cannot be run: names the file, the key and what to do."""

    exit_code = 2

    def __init__(self, message: str, *, source: str | Path = "", key: str = "") -> None:
        self.source, self.key, self.reason = str(source), key, message
        text = ": ".join(part for part in (self.source, key, message) if part)
        # On one line: a character of a key that begins another, or that a terminal obeys, is spelled out.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


class DataError(TacitError):
    """A data file that cannot be used: names the file, the line (from 1) and the column (of arrays, the key), never
    a cell's value."""

    exit_code = 2

    def __init__(
        self, message: str, *, path: str | Path = "", line: int | None = None, column: str = "", key: str = ""
    ) -> None:
        self.path, self.line, self.column, self.reason = str(path), line, column, message
        where = f"{self.path}:{line}" if self.path and line is not None else self.path
        what = f"column {column!r}" if column else f"key {key!r}" if key else ""
        super().__init__(": ".join(part for part in (where, what, message) if part))


class MissingExtra(TacitError):
    """A command needs an optional part of Tacit that is not installed."""

    exit_code = 2

    def __init__(self, feature: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{feature} needs the extra {extra!r}: pip install 'tacit[{extra}]'")


class ProtocolError(TacitError):
    """A peer sent what the protocol does not allow. `reason` is a code that may go on the wire."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


class Refused(TacitError):
    """This site declines a request. `reason` is a code that may go on the wire; `detail` stays local."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


class PrivacyBudgetExceeded(Refused):
    """A release would cost more than the budget that is left."""

    def __init__(self, detail: str) -> None:
        super().__init__("budget-spent", detail)


class StorageError(TacitError):
    """A file of ours cannot be read, written or trusted (ledger, checkpoint, session)."""


class RunFailed(TacitError):
    """A run ended without doing what was asked."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What ends an error about an unknown name: the known one that is spelt most like it; "" where none is like it."""
    found = get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
