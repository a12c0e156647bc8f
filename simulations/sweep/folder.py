"""The folder of a sweep: which cells are done, which are to be gone on with, and whether they are still the same.

`tacit tune` keeps its trials in the same way.

DIR/cells/NAME/         a run's folder for each cell
DIR/asked/NAME.toml     the experiment that this cell was begun with
DIR/baselines/          pooled and local-only results, shared by cells that do not differ in what they depend on
DIR/sweep.json  sweep.csv  sweep.html  log.txt

Guarantees:
    A cell that is finished is never run again by the same command.
    A cell of another experiment, or on other data, is refused, never mixed in.
"""

from __future__ import annotations

import fcntl
import hashlib
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from simulations.run import MARK as RUN_MARK
from simulations.sweep.grid import Cell, flat, told
from tacit.config import Experiment
from tacit.errors import ConfigError, StorageError
from tacit.report.record import RunRecord
from tacit.report.storage import read_json, write_text


class SweepFolder:
    """Where a sweep keeps its cells.

    Args:
        path: the folder; new, empty or an earlier sweep's.
        inside: folder below it, for this user alone, of all but the reports; "" = all lies side by side.

    Attributes:
        NAME: what it is the folder of; `.tacit-NAME` says so, and is locked while one goes on in it.
        CELL: what one of its runs is called; `CELLs` is the folder of the runs.
    """

    NAME: ClassVar = "sweep"
    CELL: ClassVar = "cell"

    def __init__(self, path: Path, *, inside: str = "") -> None:
        self.path, self.inside = path, path / inside
        self.baselines, self.log = self.inside / "baselines", self.inside / "log.txt"
        self._mark = path / f".tacit-{self.NAME}"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Makes the folder ours for the length of a block.

        Raises:
            ConfigError: it holds something else, or another one works in it.
        """
        try:
            if self.path.exists() and not self._mark.exists() and any(self.path.iterdir()):
                raise ConfigError(
                    f"is not empty and holds no earlier {self.NAME}; choose another folder",
                    source=self.path,
                    key="--out",
                )
            self.path.mkdir(parents=True, exist_ok=True)
            if self.inside != self.path:
                self.inside.mkdir(mode=0o700, exist_ok=True)
                self.inside.chmod(0o700)
            mark = self._mark.open("wb")
        except OSError as error:
            raise ConfigError(error.strerror or str(error), source=self.path, key="--out") from None
        with mark:
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"another {self.NAME} is running in it", source=self.path, key="--out"
                ) from None
            yield

    def cell(self, cell: Cell) -> Path:
        """The folder of one cell's run."""
        return self.inside / f"{self.CELL}s" / cell.name

    def record(self, cell: Cell) -> RunRecord | None:
        """What a finished cell has recorded; None where it is not finished."""
        path = self.cell(cell) / "report.json"
        return read_json(path) if path.exists() else None

    def is_finished(self, cell: Cell) -> bool:
        """Whether the cell's report, which is written last, is there."""
        return (self.cell(cell) / "report.json").exists()

    def is_begun(self, cell: Cell) -> bool:
        """Whether a run was interrupted in it, and did not fail: such a one goes on after its last complete round."""
        folder = self.cell(cell)
        state = folder / "server"
        return (
            (folder / RUN_MARK).exists()
            and (state / "rounds.jsonl").exists()
            and not (state / "failure.json").exists()
        )

    def check(self, cell: Cell) -> None:
        """Raises `ConfigError` where the cell was begun with another experiment, or on other data."""
        path = self._asked(cell)
        if not path.exists():
            return
        before, now = path.read_text(encoding="utf-8"), _asked(cell.experiment)
        if before == now:
            return
        change = _first_change(before, now)
        raise ConfigError(
            f"the {self.CELL} {told(cell.values)} was begun with {change}; choose another --out for this {self.NAME}",
            source=self.path,
        )

    def note(self, cell: Cell) -> None:
        """Writes down what the cell is begun with."""
        write_text(_asked(cell.experiment), self._asked(cell))

    def _asked(self, cell: Cell) -> Path:
        return self.inside / "asked" / f"{cell.name}.toml"


def _asked(experiment: Experiment) -> str:
    """The experiment, and digests of the files that it names."""
    lines = [experiment.to_toml()]
    for key, name in (
        ("data.path", experiment.data.path),
        ("simulation.faults", experiment.simulation.faults),
    ):
        if name:
            lines.append(f"# {key}: sha256 {_sha256(Path(name), key)}\n")
    return "".join(lines)


def _sha256(path: Path, key: str) -> str:
    """Of a file; of a folder that of the names and digests of all files in it, sorted."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{file.relative_to(path)!s}\0{_sha256(file, key)}\n" for file in files]
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{key}: {path}: cannot be read: {error.strerror or error}") from None


def _first_change(before: str, now: str) -> str:
    """The first key that differs, or the file that does."""
    old, new = (flat(tomllib.loads(text)) for text in (before, now))
    for key in dict.fromkeys((*old, *new)):
        if old.get(key) != new.get(key):
            return f"{key} = {_said(old.get(key))}, and now it is {_said(new.get(key))}"
    keys = [
        line[2:].partition(":")[0]
        for line in before.splitlines()
        if line.startswith("# ") and line not in now
    ]
    return f"another content of the file {keys[0]}" if keys else "another file"


def _said(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
