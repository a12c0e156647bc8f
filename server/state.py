"""A run on the server's disk: one folder, locked while a server works on it.

    run.json         Tacit's own id of the run, and how often a server was started on it
    rounds.jsonl     one line per complete round, what a progress display follows
    checkpoints/     model, strategy state and counters of the last rounds, each with a SHA-256 manifest
    result.json      written last;  failure.json  instead, with the reason
    scaling.json     center and scale, when the sites compute them together
    model.safetensors

Guarantees:
    A checkpoint is the old one or the new one, never half of it.
    Model, strategy state, round counter and record of a round are restored together or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from strategies.rounds import Progress
from tacit.errors import StorageError


class RunState:
    """The folder of one run; implements `strategies.rounds.Store`.

    Args:
        folder: created when it does not exist.
        config: the experiment in canonical TOML; a run goes on with the experiment that it began with.
        keep: newest checkpoints kept; 0 = all.
        read_only: look at a run that has ended; nothing is locked or written.

    Raises:
        StorageError: another server works on it, it belongs to another experiment, or it cannot be used.
    """

    def __init__(self, folder: Path, config: str, keep: int, *, read_only: bool = False) -> None:
        self.folder, self._keep, self._lock = folder, keep, -1
        if read_only:
            self.run_id = str((_read_json(folder / "run.json") or {})["run"])
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _locked(folder / "lock")
        digest = hashlib.sha256(config.encode()).hexdigest()
        run = _read_json(folder / "run.json") or {"run": secrets.token_hex(16), "config": digest, "starts": 0}
        if run["config"] != digest:
            raise StorageError(f"{folder}: this run began with another experiment; use another folder")
        self.run_id, self.starts = str(run["run"]), int(run["starts"]) + 1
        write_file(folder / "run.json", json.dumps({**run, "starts": self.starts}).encode())
        for name in ("result.json", "failure.json"):
            (folder / name).unlink(missing_ok=True)

    def load(self) -> Progress | None:
        """The newest checkpoint whose manifest holds; `StorageError` when there are some and none does."""
        folders = self._checkpoints()
        for folder in reversed(folders):
            progress = _read_checkpoint(folder)
            if progress is not None:
                self._truncate_rounds(progress.round)
                return progress
        if folders:
            raise StorageError(
                f"{self.folder}: every checkpoint is damaged; restore this folder from a backup"
            )
        return None

    def save(self, progress: Progress, record: Mapping[str, Any] | None) -> None:
        """Writes a checkpoint under a temporary name, fsyncs, renames; then the round's line."""
        root = self.folder / "checkpoints"
        root.mkdir(mode=0o700, exist_ok=True)
        target = root / f"round-{progress.round:06d}"
        unfinished = root / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one that load() passed over
        unfinished.mkdir(mode=0o700)
        counters = {
            "round": progress.round,
            "best_round": progress.best_round,
            "best_value": progress.best_value,
            "stale": progress.stale,
            "record": record,
        }
        files = {
            "model.safetensors": save_tensors(dict(progress.arrays)),
            "strategy.safetensors": save_tensors(dict(progress.strategy)),
            "counters.json": json.dumps(counters).encode(),
        }
        files["manifest.json"] = json.dumps({name: _sha256(data) for name, data in files.items()}).encode()
        for name, data in files.items():
            write_file(unfinished / name, data, sync_folder=False)
        _sync_folder(unfinished)
        unfinished.rename(target)
        _sync_folder(root)
        if record is not None:
            self._append_round(record)
        self._prune(progress)

    def model_of(self, round_number: int) -> dict[str, NDArray[np.float32]]:
        """The global model after a round, from its checkpoint."""
        folder = self.folder / "checkpoints" / f"round-{round_number:06d}"
        progress = _read_checkpoint(folder) if folder.exists() else None
        if progress is None:
            raise StorageError(f"{folder}: no usable checkpoint")
        return progress.arrays

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
        return (self.folder / "checkpoints" / f"round-{round_number:06d}").exists()

    @property
    def result(self) -> dict[str, Any]:
        """What `finish` wrote; empty before."""
        return _read_json(self.folder / "result.json") or {}

    def finish(self, progress: Progress, outcome: str, model_round: int) -> None:
        """Writes the released model, then the result."""
        write_file(self.folder / "model.safetensors", save_tensors(dict(self.model_of(model_round))))
        result = {
            "run": self.run_id,
            "rounds": progress.round,
            "outcome": outcome,
            "model_round": model_round,
        }
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
            best = f"round-{progress.best_round:06d}"
            for folder in self._checkpoints()[: -self._keep]:
                if folder.name != best:
                    shutil.rmtree(folder)

    def _append_round(self, record: Mapping[str, Any]) -> None:
        descriptor = os.open(self.folder / "rounds.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, json.dumps(record).encode() + b"\n")
        finally:
            os.close(descriptor)

    def _truncate_rounds(self, last: int) -> None:
        """Makes rounds.jsonl agree with the checkpoints, which are what counts."""
        path = self.folder / "rounds.jsonl"
        lines = {int(record["round"]): record for record in read_rounds(path) if record["round"] <= last}
        newest = _read_json(self.folder / "checkpoints" / f"round-{last:06d}" / "counters.json") or {}
        if newest.get("record") and last not in lines:
            lines[last] = newest["record"]
        if path.exists() or lines:
            write_file(path, b"".join(json.dumps(lines[n]).encode() + b"\n" for n in sorted(lines)))


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a rounds.jsonl; an unfinished last one is left out."""
    try:
        complete, _, _ = path.read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in complete.splitlines()]


def write_file(path: Path, data: bytes, *, sync_folder: bool = True) -> None:
    """Replaces a file atomically and durably, mode 0600."""
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    if sync_folder:
        _sync_folder(path.parent)


def _read_checkpoint(folder: Path) -> Progress | None:
    """The checkpoint, or None when a file is missing, altered or cut short."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        files = {name: (folder / name).read_bytes() for name in manifest}
        if any(_sha256(data) != manifest[name] for name, data in files.items()):
            return None
        counters = json.loads(files["counters.json"])
        return Progress(
            round=counters["round"],
            arrays=load_tensors(files["model.safetensors"]),
            strategy=load_tensors(files["strategy.safetensors"]),
            best_round=counters["best_round"],
            best_value=counters["best_value"],
            stale=counters["stale"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StorageError(f"{path.parent}: another server is working on this run") from None
    return descriptor


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise StorageError(f"{path}: damaged") from None
    return content if isinstance(content, dict) else None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
