"""What a site keeps of a run from one round to the next: its own part of the model, or its control variate.

A file for each of the last rounds, in a folder of the run that only its owner can read. Nothing of it ever leaves. What
a round has made is put aside until the round is paid for: else records would shape later updates at no cost.

Guarantees:
    What a round has made is used in later rounds only once the round is paid for.
    A round that is asked for again starts from what the site had before it.
    What was made under one experiment is never used under another, whatever the server calls its run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tacit.durable import new_folder, sync_folder, write_file
from tacit.errors import Refused, StorageError

FOLDER: Final = "kept"  # in a site's folder
LAST: Final = 2  # rounds whose files stay: a server that was killed asks for the last one again
_NAME: Final = re.compile(r"(\d{6})-after-(\d{6})\.safetensors")

Arrays = dict[str, NDArray[np.float32]]


class _Round(NamedTuple):
    number: int
    previous: int  # the round before that this site took part in; 0 = none
    path: Path


class Kept:
    """Of one site and one run.

    Args:
        folder: the site's.
        run_id: Tacit's own id of the run.
        experiment: digest of its experiment: under another one of the same id there is nothing.
        durable: wait for the disk.
    """

    def __init__(self, folder: Path, run_id: str, experiment: bytes, *, durable: bool = True) -> None:
        # The server chose the id: no part of it becomes a path.
        self._folder = folder / FOLDER / hashlib.sha256(experiment + run_id.encode()).hexdigest()[:32]
        self._durable = durable

    def before(self, round_number: int) -> Arrays | None:
        """What the site had before a round; None where it had nothing yet.

        Raises:
            Refused: "kept", it is gone, because the server goes back further than the files do.
            StorageError: it cannot be read.
        """
        rounds = self._rounds()
        if earlier := [one for one in rounds if one.number < round_number]:
            return _read(earlier[-1].path)
        if rounds and rounds[0].previous:
            raise Refused("kept", f"what this site kept before round {round_number} is gone")
        return None

    def put_aside(self, round_number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Writes down what a round has made; `take_over` makes it count."""
        whole = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}
        path = self._aside(round_number)
        for folder in (self._folder.parent, self._folder):
            new_folder(folder, durable=self._durable)
        write_file(path, save(whole), durable=self._durable)

    def take_over(self, round_number: int) -> None:
        """What was put aside counts from here on; to be called when the round is paid for. Does nothing twice."""
        aside = self._aside(round_number)
        try:
            if not aside.exists():
                return
            earlier = [one.number for one in self._rounds() if one.number < round_number]
            name = f"{round_number:06d}-after-{max(earlier, default=0):06d}.safetensors"
            aside.replace(self._folder / name)
            if self._durable:
                sync_folder(self._folder)
            for old in self._rounds()[:-LAST]:
                old.path.unlink()
        except OSError as error:
            raise StorageError(f"{aside}: {error.strerror}") from None

    def _aside(self, round_number: int) -> Path:
        return self._folder / f"{round_number:06d}.aside"

    def _rounds(self) -> list[_Round]:
        return _rounds_in(self._folder)


def newest(site_folder: Path) -> Arrays | None:
    """What a site of a simulation, which has one run, has kept last; None where it has nothing."""
    rounds = [one for folder in sorted((site_folder / FOLDER).glob("*")) for one in _rounds_in(folder)]
    return _read(rounds[-1].path) if rounds else None


def _rounds_in(folder: Path) -> list[_Round]:
    names = [(path, _NAME.fullmatch(path.name)) for path in sorted(folder.glob("*.safetensors"))]
    return [_Round(int(found[1]), int(found[2]), path) for path, found in names if found]


def _read(path: Path) -> Arrays:
    try:
        arrays: Arrays = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be read: {error}") from None
    return arrays
