"""What a trusted server remembers of the noise that it adds, in a file: `noise.bin` in the run's folder.

Whoever has it can subtract the noise of the last rounds, as the server could from what it sees. It is no key: what is
older than `bands` rounds is in it no more, and when the run has finished it is removed. A run that has failed may be
gone on with, and keeps it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from tacit.durable import write_file
from tacit.errors import StorageError
from tacit.privacy.central import NoiseMemory, Released
from tacit.secagg.identity import read_private
from tacit.update import Aggregate

FILE: Final = "noise.bin"  # SHA-256 of the rest, then safetensors

_DIGEST_BYTES: Final = 32


class NoiseFile(NoiseMemory):
    """A `NoiseMemory` that outlives its process.

    Args:
        path: need not exist yet; mode 0600.
        run: Tacit's id of the run.
        durable: wait for the disk at each round.

    Raises:
        StorageError: it is damaged or another run's, or other users can read it.

    Guarantees:
        What a round has released is on the disk before anything of it is used.
    """

    def __init__(self, path: Path, run: str, *, durable: bool = True) -> None:
        super().__init__()
        self._path, self._run, self._durable = path, run, durable
        if path.exists():
            self.last = _decoded(read_private(path, -1), path, run)

    def _write(self, released: Released) -> None:
        total = released.total
        about = [self._run, released.round, total.num_clients, released.facts, released.proof]
        tensors = {
            "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
            "total": total.values,
            **{f"noise{i}": noise for i, noise in enumerate(released.noise)},
        }
        data = save_tensors(tensors)
        write_file(self._path, hashlib.sha256(data).digest() + data, durable=self._durable)


def forget(path: Path) -> None:
    """When a run has finished no noise is taken back any more, and nobody shall subtract it.

    Raises:
        StorageError: the file cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be removed: {error.strerror or error}") from None


def _decoded(content: bytes, path: Path, run: str) -> Released:
    data = content[_DIGEST_BYTES:]
    try:
        if hashlib.sha256(data).digest() != content[:_DIGEST_BYTES]:
            raise ValueError
        tensors = load_tensors(data)
        owner, number, num_clients, facts, proof = json.loads(tensors["about"].tobytes())
        noise = tuple(tensors[f"noise{i}"] for i in range(len(tensors) - 2))
        released = Released(number, Aggregate(tensors["total"], num_clients), noise, facts, proof)
    except (ValueError, KeyError, SafetensorError):
        raise StorageError(
            f"{path}: damaged; put back the newest copy of the run's folder, or begin a new run"
        ) from None
    if owner != run:
        raise StorageError(f"{path}: the noise of another run; put back this run's own, or begin a new run")
    return released
