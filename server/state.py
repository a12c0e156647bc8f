"""A run on the server's disk: one folder, locked while a server works on it.

    run.json         Tacit's own id of the run, and how often a server was started on it
    rounds.jsonl     one line per complete round, what a progress display follows
    checkpoints/     model, strategy state and counters of the last rounds, each with a SHA-256 manifest
    result.json      written last;  failure.json  instead, with the reason
    scaling.json     center and scale, when the sites compute them together
    noise.bin        noise that later rounds take back, while a run of `dp_ftrl` goes on (`server.noise`)
    model.safetensors

Guarantees:
    Model, strategy state, round counter and record of a round are restored together or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from server.checkpoint import Checkpoint, name_of
from strategies.rounds import Progress
from tacit.durable import new_folder, sync_folder, usable, write_file
from tacit.errors import StorageError


class RunState:
    """The folder of one run; implements `strategies.rounds.Store`.

    Args:
        folder: created when it does not exist.
        config: the experiment in canonical TOML; a run goes on with the experiment that it began with.
        keep: newest checkpoints kept; 0 = all.
        read_only: look at a run that has ended; nothing is locked or written.
        durable: wait for the disk at each round; a simulation may do without.

    Raises:
        StorageError: another server works on it, it belongs to another experiment, or it cannot be used.
    """

    def __init__(
        self, folder: Path, config: str, keep: int, *, read_only: bool = False, durable: bool = True
    ) -> None:
        self.folder, self._keep, self._lock, self.durable = folder, keep, -1, durable
        with usable(folder):
            if not read_only:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock = _locked(folder / "lock")
            try:
                self._open(config, read_only=read_only)
            except BaseException:
                self.close()
                raise

    def _open(self, config: str, *, read_only: bool) -> None:
        path = self.folder / "run.json"
        run = _run_of(self.folder, config)
        if run is None:
            if read_only:
                raise StorageError(f"{path}: missing")
            run = {"run": secrets.token_hex(16), "config": _digest(config), "starts": 0}
        self.run_id, self.starts = run["run"], run["starts"]
        if read_only:
            return
        self.starts += 1
        write_file(path, json.dumps({**run, "starts": self.starts}).encode())
        for name in ("result.json", "failure.json"):
            (self.folder / name).unlink(missing_ok=True)

    def load(self) -> Progress | None:
        """The newest checkpoint that is whole; damaged ones after it are removed, and their rounds run again.

        Raises:
            StorageError: the run has made rounds, and no checkpoint is whole; or one cannot be read now, and then
                nothing is removed.
        """
        with usable(self.folder):
            damaged: list[Path] = []
            for folder in reversed(self._checkpoints()):
                checkpoint = Checkpoint.read(folder, self.run_id)
                if checkpoint is not None:
                    for newer in damaged:
                        shutil.rmtree(newer)
                    self._repair_rounds(checkpoint.progress.round)
                    return checkpoint.progress
                damaged.append(folder)
            if damaged or (self.folder / "rounds.jsonl").exists():
                raise StorageError(
                    f"{self.folder}: no checkpoint of this run is whole; restore the folder from a backup"
                )
            return None

    def save(self, progress: Progress, record: Mapping[str, Any] | None) -> None:
        """Writes a checkpoint, which is what counts; then the round's line."""
        with usable(self.folder):
            Checkpoint(self.run_id, progress, record).write(self.folder / "checkpoints", durable=self.durable)
            if record is not None:
                self._append_round(record)
            self._prune(progress)

    def model_of(self, round_number: int) -> dict[str, NDArray[np.float32]]:
        """The global model after a round, from its checkpoint."""
        folder = self.folder / "checkpoints" / name_of(round_number)
        with usable(folder):
            checkpoint = Checkpoint.read(folder, self.run_id)
        if checkpoint is None:
            raise StorageError(f"{folder}: missing or damaged")
        return checkpoint.progress.arrays

    @property
    def scaling(self) -> str:
        """Constants of a federated scaling, as text; empty while there are none."""
        path = self.folder / "scaling.json"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @scaling.setter
    def scaling(self, text: str) -> None:
        write_file(self.folder / "scaling.json", text.encode())

    def has_model(self, round_number: int) -> bool:
        """Whether the model after a round is still there."""
        return (self.folder / "checkpoints" / name_of(round_number)).exists()

    @property
    def result(self) -> dict[str, Any]:
        """What `finish` wrote; empty before."""
        return _read_json(self.folder / "result.json") or {}

    def finish(self, progress: Progress, outcome: str, model_round: int) -> None:
        """Writes the released model, then the result."""
        model = save_tensors(dict(self.model_of(model_round)))
        result = {
            "run": self.run_id,
            "rounds": progress.round,
            "outcome": outcome,
            "model_round": model_round,
        }
        write_file(self.folder / "model.safetensors", model)
        write_file(self.folder / "result.json", json.dumps(result).encode())

    def fail(self, reason: str) -> None:
        """Writes why the run ended without a result."""
        write_file(self.folder / "failure.json", json.dumps({"error": reason}).encode())

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("round-*"))

    def _prune(self, progress: Progress) -> None:
        """Removes all but the newest and the best; the best may become the released model."""
        if self._keep:
            best = name_of(progress.best_round)
            for folder in self._checkpoints()[: -self._keep]:
                if folder.name != best:
                    shutil.rmtree(folder)

    def _append_round(self, record: Mapping[str, Any]) -> None:
        path = self.folder / "rounds.jsonl"
        is_new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "ab") as file:
            file.write(json.dumps(record).encode() + b"\n")  # at once: a reader sees whole lines
            if self.durable:
                file.flush()
                os.fsync(descriptor)
        if is_new and self.durable:  # lost, it could not be made again: older checkpoints are removed
            sync_folder(self.folder)

    def _repair_rounds(self, last: int) -> None:
        """Makes rounds.jsonl agree with the checkpoints, which are what counts."""
        path = self.folder / "rounds.jsonl"
        records = {record["round"]: record for record in _lines(path) if record is not None}
        for folder in self._checkpoints():
            checkpoint = Checkpoint.read(folder, self.run_id)
            if checkpoint is not None and checkpoint.record is not None:
                records[checkpoint.progress.round] = dict(checkpoint.record)
        try:
            lines = [json.dumps(records[number]).encode() + b"\n" for number in range(1, last + 1)]
        except KeyError as error:
            raise StorageError(f"{path}: damaged: round {error} is missing") from None
        if lines or path.exists():
            write_file(path, b"".join(lines))


def begin(folder: Path, run: str, config: str) -> None:
    """Makes the folder of a run whose id is known before any server works on it."""
    for path in (folder.parent.parent, folder.parent, folder):  # the kit is there
        new_folder(path)
    write_file(folder / "run.json", json.dumps({"run": run, "config": _digest(config), "starts": 0}).encode())


def starts_of(folder: Path) -> int:
    """How often a server was started on a run; each start holds the run's lock from before it is counted."""
    return int((_read_json(folder / "run.json") or {}).get("starts", 0))


def is_worked_on(folder: Path) -> bool:
    """Whether some process holds the lock of a run's folder. A process that is killed gives it free at once."""
    try:
        os.close(_locked(folder / "lock"))
    except FileNotFoundError:  # somebody has removed the folder
        return False
    except (StorageError, OSError):  # held, or it cannot be told
        return True
    return False


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """A folder for this process alone.

    Raises:
        StorageError: another works in it, after `patience` seconds still.
    """
    with usable(folder):
        deadline = time.monotonic() + patience
        while True:
            try:
                lock = _locked(folder / "lock", "here")
                break
            except StorageError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)
    try:
        yield
    finally:
        os.close(lock)


def check_folder(folder: Path, config: str) -> None:
    """Raises `StorageError` unless a server can begin this experiment in this folder, or go on with it.

    To be asked before anything is started or removed: the folder of another run stays as it is.
    """
    with usable(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _locked(folder / "lock")
        try:
            _run_of(folder, config)
        finally:
            os.close(lock)


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a rounds.jsonl, none where there is no such file; an unfinished last one is left out.

    Raises:
        StorageError: a line is damaged.
    """
    records = _lines(path)
    if None in records:
        raise StorageError(f"{path}:{records.index(None) + 1}: damaged")
    return [record for record in records if record is not None]


def _lines(path: Path) -> list[dict[str, Any] | None]:
    """Each complete line, None where it is damaged."""
    try:
        complete, _, _ = path.read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        return []
    return [_record(line) for line in complete.split(b"\n")] if complete else []


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("round"), int) else None


def _locked(path: Path, where: str = "on this run") -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StorageError(f"{path.parent}: another server is working {where}") from None
    return descriptor


def _digest(config: str) -> str:
    return hashlib.sha256(config.encode()).hexdigest()


def _run_of(folder: Path, config: str) -> dict[str, Any] | None:
    """What run.json says; None where there is none. `StorageError` when damaged or another experiment's."""
    path = folder / "run.json"
    run = _read_json(path)
    if run is None:
        return None
    if [type(run.get(key)) for key in ("run", "starts", "config")] != [str, int, str]:
        raise StorageError(f"{path}: damaged")
    if run["config"] != _digest(config):
        raise StorageError(f"{folder}: this run began with another experiment; use another folder")
    return run


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise StorageError(f"{path}: damaged")
    return content
