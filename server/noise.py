"""What a trusted server remembers of the noise that it adds, in a file: `noise.bin` in the run's folder.

Whoever has it can subtract the noise of the last rounds, as the server could from what it sees. It is no key: what is
older than `bands` rounds is in it no more, and when the run has ended it is removed.
"""

from __future__ import annotations

import hashlib
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
        durable: wait for the disk at each round.

    Raises:
        StorageError: it is damaged, or other users can read it.

    Guarantees:
        What a round has released is on the disk before anything of it is used.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        super().__init__()
        self._path, self._durable = path, durable
        if path.exists():
            self.released = self.next = _decoded(read_private(path, -1), path)

    def _write(self, released: Released) -> None:
        tensors = {
            "numbers": np.array([released.round, released.total.num_clients]),
            "total": released.total.values,
            **{f"noise{i}": noise for i, noise in enumerate(released.noise)},
        }
        data = save_tensors(tensors)
        try:
            write_file(self._path, hashlib.sha256(data).digest() + data, durable=self._durable)
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be written: {error.strerror or error}") from None


def forget(path: Path) -> None:
    """When a run has ended no noise is taken back any more, and nobody shall subtract it.

    Raises:
        StorageError: the file cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be removed: {error.strerror or error}") from None


def _decoded(content: bytes, path: Path) -> Released:
    data = content[_DIGEST_BYTES:]
    try:
        if hashlib.sha256(data).digest() != content[:_DIGEST_BYTES]:
            raise ValueError
        tensors = load_tensors(data)
        number, num_clients = (int(value) for value in tensors["numbers"])
        noise = tuple(tensors[f"noise{i}"] for i in range(len(tensors) - 2))
        return Released(number, Aggregate(tensors["total"], num_clients), noise)
    except (ValueError, KeyError, SafetensorError):
        raise StorageError(
            f"{path}: damaged; put back the newest copy of the run's folder, or begin a new run"
        ) from None
