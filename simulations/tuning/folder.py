"""The folder of a search: that of a sweep, with what has been drawn and asked so far.

DIR/tuning.json  tuning.csv  tuning.html  best.toml  best.safetensors
DIR/search.json         the settings of the search, how many trials there are, and the values of those begun
DIR/trials/NUMBER/      a run's folder for each trial
DIR/asked/NUMBER.toml   what it was begun with
DIR/log.txt             what they have printed

Of a search that is counted all but the first line lies in DIR/private/, and beside it

DIR/private/failed/NUMBER.txt   why a trial counts as one without a result

Guarantees:
    What tells of the other trials of a search that is counted lies in one folder, which nobody else can open.
    A search that is gone on with keeps its number of trials, their values, and what is finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import ValidationError

from simulations.sweep.folder import SweepFolder
from simulations.sweep.grid import Cell
from simulations.tuning.space import Tuning
from tacit.errors import ConfigError, StorageError
from tacit.report.record import Count, Part, Table
from tacit.report.storage import write_json, write_text

PRIVATE: Final = "private"
ASKED: Final = "search.json"


class Asked(Part):
    """What a search has drawn and asked so far.

    Attributes:
        tuning: its settings.
        total: how many trials there are to be.
        values: of the trials begun, in their order.
    """

    tuning: Table
    total: Count
    values: tuple[Table, ...] = ()


class SearchFolder(SweepFolder):
    """Where a search keeps its trials.

    Args:
        path: the folder; new, empty or an earlier search's.
        counted: whether the search is.
    """

    NAME: ClassVar = "search"
    CELL: ClassVar = "trial"

    def __init__(self, path: Path, *, counted: bool = False) -> None:
        super().__init__(path, inside=PRIVATE if counted else "")
        self._counted = counted

    def read(self, tuning: Tuning) -> Asked | None:
        """What an earlier command has asked; None where there was none.

        Raises:
            ConfigError: it was another search. More trials are the same one, but for one that is counted.
        """
        places = (self.path / ASKED, self.path / PRIVATE / ASKED)
        path = next((place for place in places if place.exists()), None)
        if path is None:
            return None
        try:
            asked = Asked.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError):
            raise StorageError(f"{path}: cannot be read as a search") from None
        now = as_table(tuning)
        for key, value in now.items():
            before = asked.tuning.get(key)
            if before != value and (key != "trials" or tuning.accounting == "private"):
                raise ConfigError(
                    f"the search was begun with {json.dumps(before)}, and now it is {json.dumps(value)}; "
                    "choose another --out for this search",
                    source=self.path,
                    key=f"tuning.{key}",
                )
        return asked

    def write(self, tuning: Tuning, total: int, values: Sequence[Mapping[str, Any]]) -> None:
        """Keeps it, before any of it is acted upon."""
        asked = Asked(tuning=as_table(tuning), total=total, values=tuple(dict(own) for own in values))
        write_json(asked, self.inside / ASKED)

    def fail(self, cell: Cell, reason: str) -> None:
        """Writes down that a trial counts as one without a result, so that it is never tried again."""
        write_text(f"{reason}\n", self._failure(cell))

    def failure(self, cell: Cell) -> str:
        """Why a trial has no result; "" = it may have one."""
        path = self._failure(cell)
        if path.exists():
            return path.read_text(encoding="utf-8").strip()
        # Its own word counts as soon as it is there: whoever was to write ours down may have been ended before.
        own = self.cell(cell) / "server" / "failure.json"
        if self._counted and own.exists() and not super().is_finished(cell):
            return f"see {own.relative_to(self.inside)}"
        return ""

    def is_finished(self, cell: Cell) -> bool:
        """Whether the trial has a report, or is never tried again."""
        return super().is_finished(cell) or bool(self.failure(cell))

    def _failure(self, cell: Cell) -> Path:
        return self.inside / "failed" / f"{cell.name}.txt"


def as_table(tuning: Tuning) -> dict[str, Any]:
    """The settings as JSON has them."""
    table: dict[str, Any] = json.loads(json.dumps(tuning.model_dump(mode="json")))
    return table
