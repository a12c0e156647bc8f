"""The queue of a federation's runs: one folder each, made by `tacit submit` and worked off by `tacit server`.

    experiment.toml   canonical text
    status.json       queued, running, finished, failed or stopped, since when, and why
    stop              there when somebody has asked for the end
    log.txt           what happened, one line each
    report.json  report.html  privacy-statement.md  model-card.md   when it has ended (`server.findings`)
    and what `server.state` keeps

The two commands share nothing but these files, so that a run outlives the terminal that asked for it.

Guarantees:
    A run is in the queue whole or not at all.
    When `submit` returns, the run is on the disk with its name.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from server.state import begin, read_rounds, starts_of
from tacit.config import Experiment
from tacit.durable import sync_folder, usable, write_file
from tacit.errors import ConfigError, StorageError

PAGE: Final = "report.html"
STATEMENT: Final = "privacy-statement.md"
ENDED: Final = ("finished", "failed", "stopped")


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    Attributes:
        state: "queued", "running", or one of `ENDED`.
        name: the experiment's.
        rounds: rounds that it wants.
        queued: when it was put in the queue, seconds since 1970: the oldest is next.
        reason: why it failed or was stopped; what it waits for; how it has finished.
        begun: when it was worked on first, seconds since 1970; 0 = not yet.
    """

    state: str
    name: str
    rounds: int
    queued: float
    reason: str = ""
    begun: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether it is over, well or badly."""
        return self.state in ENDED


@dataclass(frozen=True)
class Run:
    """One folder of the queue; its name is Tacit's own id of the run."""

    folder: Path

    @property
    def id(self) -> str:
        """32 hexadecimal digits, stable over restarts."""
        return self.folder.name

    @property
    def experiment(self) -> str:
        """Canonical TOML text."""
        with usable(self.folder):
            return (self.folder / "experiment.toml").read_text(encoding="utf-8")

    @property
    def status(self) -> Status:
        """As last written."""
        path = self.folder / "status.json"
        with usable(self.folder):
            try:
                return Status(**json.loads(path.read_bytes()))
            except (ValueError, TypeError):
                raise StorageError(f"{path}: damaged") from None

    def set(self, state: str, reason: str = "") -> None:
        """Writes where it stands from now on, if that is any news."""
        before = self.status
        begun = before.begun or (time.time() if state == "running" else 0.0)
        after = replace(before, state=state, reason=reason, begun=begun)
        if after != before:
            self._write(after)
            self.log(state if reason in ("", state) else f"{state}: {reason}")

    def _write(self, status: Status) -> None:
        write_file(self.folder / "status.json", json.dumps(asdict(status)).encode())

    def log(self, text: str) -> None:
        """Adds a line to what happened. Not worth failing for."""
        first, *more = text.splitlines() or [""]
        lines = [f"{datetime.now().astimezone().isoformat(timespec='seconds')}  {first}", *more]
        with suppress(OSError), (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    @property
    def num_rounds(self) -> int:
        """Rounds that are complete."""
        return len(read_rounds(self.folder / "rounds.jsonl"))

    @property
    def outcome(self) -> tuple[str, str] | None:
        """State and reason that follow from what the `ServerApp` has left; None while it has left nothing."""
        if (result := _read(self.folder / "result.json")) is not None:
            return "finished", str(result.get("outcome", ""))
        if (failure := _read(self.folder / "failure.json")) is not None:
            return "failed", str(failure.get("error", ""))
        return None

    def forget_outcome(self) -> None:
        """Before it begins or goes on: what an earlier start has left is over."""
        with usable(self.folder):
            (self.folder / "failure.json").unlink(missing_ok=True)

    @property
    def has_begun(self) -> bool:
        """Whether a `ServerApp` was started on it, so that something may have left the sites."""
        try:
            return starts_of(self.folder) > 0
        except StorageError:  # nothing can be said of it
            return False

    @property
    def page(self) -> Path | None:
        """What there is to read of it: the report, else the privacy statement; None while there is neither."""
        found = (self.folder / name for name in (PAGE, STATEMENT))
        return next((path for path in found if path.exists()), None)

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether somebody wants its end."""
        return (self.folder / "stop").exists()

    def ask_to_stop(self) -> None:
        """The server will see it."""
        write_file(self.folder / "stop", b"")


def outcome_text(state: str, reason: str) -> str:
    """How a run has ended, as its record says it (`tacit.report.record.RunRecord`)."""
    if state == "failed":
        return f"failed: {reason.partition(chr(10))[0] or 'without a reason'}"
    return "stopped early" if (state, reason) == ("finished", "stopped early") else state


class Queue:
    """All runs of a federation.

    Args:
        folder: `state/runs` of the coordinator's kit; need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def submit(self, experiment: Experiment) -> Run:
        """Puts a run at the end."""
        run, text = Run(self.folder / secrets.token_hex(16)), experiment.to_toml()
        unfinished = Run(self.folder / f".{run.id}")
        begin(unfinished.folder, run.id, text)
        with usable(self.folder):
            write_file(unfinished.folder / "experiment.toml", text.encode())
            unfinished._write(Status("queued", experiment.name, experiment.training.rounds, time.time()))
            unfinished.log("queued")
            unfinished.folder.rename(run.folder)
            sync_folder(self.folder)
        return run

    def resume(self, run: Run) -> None:
        """Puts one that has failed or was stopped at the end; it goes on after its last complete round.

        Raises:
            ConfigError: it has finished, or not ended.
        """
        status = run.status
        if status.state not in ("failed", "stopped"):
            raise ConfigError(f"run {run.id} is {status.state}: nothing to resume", key="--resume")
        run.forget_outcome()
        with usable(run.folder):
            (run.folder / "stop").unlink(missing_ok=True)
        run._write(replace(status, state="queued", reason="", queued=time.time()))
        run.log("queued again")

    def known(self) -> list[tuple[Run, Status | None]]:
        """All of them with where they stand, in the order in which they were queued; first, and with None, those
        whose status is damaged."""
        found = [Run(path) for path in self.folder.glob("[!.]*") if (path / "status.json").exists()]
        pairs = [(run, _status_of(run)) for run in found]
        return sorted(pairs, key=lambda pair: (pair[1].queued if pair[1] else 0.0, pair[0].id))

    def runs(self) -> list[Run]:
        """All of them, in that order."""
        return [run for run, _ in self.known()]

    def next(self, besides: Container[str] = ()) -> Run | None:
        """The one to work on: that which was begun, else the oldest; none of `besides`, which are ids."""
        known = [(run, status) for run, status in self.known() if run.id not in besides]
        for wanted in ("running", "queued"):
            for run, status in known:
                if status is not None and status.state == wanted:
                    return run
        return None

    def find(self, start: str) -> Run:
        """The run whose id begins so; "" is the newest.

        Raises:
            ConfigError: there is none, or more than one.
        """
        found = [run for run in self.runs() if run.id.startswith(start)]
        if not start:
            found = found[-1:]
        if len(found) != 1:
            raise ConfigError(f"{len(found) or 'no'} runs begin with {start!r}", source=self.folder)
        return found[0]


def _status_of(run: Run) -> Status | None:
    try:
        return run.status
    except StorageError:
        return None


def _read(path: Path) -> dict[str, object] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
