"""Files of a run that are there whole or not at all, and the checkpoints made of them.

A checkpoint is a folder with the model, the strategy's state and the counters after one round, and a manifest with
the SHA-256 of each.

Guarantees:
    A checkpoint is the old one or the new one, never half of it.
    One that was altered, cut short, moved or taken from another run is not read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from strategies.rounds import Progress
from tacit.durable import new_folder, sync_folder, write_file


@dataclass(frozen=True)
class Checkpoint:
    """What is restored together.

    Attributes:
        run: Tacit's own id of the run.
        progress: where the run stood.
        record: of the round that led there; None before the first.
    """

    run: str
    progress: Progress
    record: Mapping[str, Any] | None

    def write(self, root: Path, *, durable: bool = True) -> None:
        """Adds the checkpoint to the folder of all of them, under a temporary name until it is on the disk.

        Args:
            root: the folder.
            durable: wait for the disk. Without, a checkpoint outlives its process, but perhaps not a power failure.
        """
        new_folder(root, durable=durable)
        unfinished = root / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        unfinished.mkdir(mode=0o700)
        progress = self.progress
        counters = {
            "run": self.run,
            "round": progress.round,
            "best_round": progress.best_round,
            "best_value": progress.best_value,
            "stale": progress.stale,
            "clip": progress.clip,
            "cohorts": {str(number): cohort for number, cohort in progress.cohorts.items()},
            "record": self.record,
        }
        files = {
            "model.safetensors": save_tensors(dict(progress.arrays)),
            "strategy.safetensors": save_tensors(dict(progress.strategy)),
            "counters.json": json.dumps(counters).encode(),
        }
        files["manifest.json"] = json.dumps({name: _sha256(data) for name, data in files.items()}).encode()
        for name, data in files.items():
            write_file(unfinished / name, data, sync_name=False, durable=durable)
        if durable:
            sync_folder(unfinished)
        unfinished.rename(root / name_of(progress.round))
        if durable:
            sync_folder(root)

    @classmethod
    def read(cls, folder: Path, run: str) -> Checkpoint | None:
        """The checkpoint in a folder; None when a file is missing, altered, cut short or not of this run.

        Raises:
            OSError: it is there and cannot be read now, which says nothing about what is in it.
        """
        try:
            manifest = json.loads((folder / "manifest.json").read_bytes())
            files = {name: (folder / name).read_bytes() for name in manifest}
            if any(_sha256(data) != manifest[name] for name, data in files.items()):
                return None
            counters = json.loads(files["counters.json"])
            if (counters["run"], name_of(counters["round"])) != (run, folder.name):
                return None
            progress = Progress(
                round=counters["round"],
                arrays=load_tensors(files["model.safetensors"]),
                strategy=load_tensors(files["strategy.safetensors"]),
                best_round=counters["best_round"],
                best_value=counters["best_value"],
                stale=counters["stale"],
                clip=counters["clip"],
                cohorts={int(number): cohort for number, cohort in counters.get("cohorts", {}).items()},
            )
            return cls(run, progress, counters["record"])
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError):
            return None


def name_of(round_number: int) -> str:
    """The folder's name of the checkpoint after a round."""
    return f"round-{round_number:06d}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
