"""Writes the sites' folders all at once or not at all, and recognises them again.

Guarantees:
    The folder is complete or absent.
    Every value reads back as the value it was.
    The same experiment and data give the same files; others in their place are refused, never overwritten.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w

from tacit.config import Experiment
from tacit.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from pandas import DataFrame


def store(
    out: Path,
    experiment: Experiment,
    labels: Sequence[str],
    frames: Sequence[DataFrame],
    file: Callable[[DataFrame], bytes],
    *,
    durable: bool = True,
) -> str:
    """Writes `out`/sites, or finds it there as it would write it.

    Args:
        out: the run's folder; created when it does not exist.
        experiment: with its federation declared; kept as sites/experiment.toml.
        labels: of the sites.
        frames: the rows of each site.
        file: makes of them what stands in the site's file, whose name the experiment's data say.
        durable: goes into each site.toml: whether its ledger waits for the disk.

    Returns:
        The fingerprint: SHA-256 over that file and every site's, in hexadecimal.

    Raises:
        ConfigError: `out`/sites is there and differs.
        StorageError: `out` cannot be written.
    """
    folder, unfinished = out / "sites", out / ".sites.unfinished"
    try:
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        _write(unfinished, experiment, labels, frames, file, durable)
        fingerprint = _fingerprint(unfinished, len(frames), experiment.data.file)
        if not folder.exists():
            unfinished.rename(folder)
        elif _fingerprint(folder, len(frames), experiment.data.file) != fingerprint:
            raise ConfigError(_difference(folder, unfinished), source=folder)
    except OSError as error:
        raise StorageError(f"{error.filename or out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return fingerprint


def _write(
    folder: Path,
    experiment: Experiment,
    labels: Sequence[str],
    frames: Sequence[DataFrame],
    file: Callable[[DataFrame], bytes],
    durable: bool,
) -> None:
    folder.mkdir(mode=0o700)
    name = experiment.data.file
    _private_file(folder / "experiment.toml", experiment.to_toml().encode())
    for i, (label, frame) in enumerate(zip(labels, frames, strict=True)):
        write_site(folder / str(i), experiment, label, data=name, durable=durable)
        _private_file(folder / str(i) / name, file(frame))


def write_site(folder: Path, experiment: Experiment, label: str, *, data: str, durable: bool) -> None:
    """A new site's folder with its description; the file that it names as its data is not there yet."""
    folder.mkdir(mode=0o700)
    description: dict[str, object] = {
        "label": label,
        "data_set": f"{experiment.name}/{label}",
        **({} if data == "data.csv" else {"data": data}),
        **({} if durable else {"durable": False}),
    }
    _private_file(folder / "site.toml", tomli_w.dumps(description).encode())


def csv_bytes(frame: DataFrame) -> bytes:
    """`csv_text` in UTF-8."""
    return csv_text(frame).encode()


def csv_text(frame: DataFrame) -> str:
    """The file of one site, with a header, separated by commas."""
    # pandas writes the shortest text that reads back as the same number. For a float32 that is the shortest
    # in 32 bits, which in 64 bits is another number: widen first.
    # Lines end as in RFC 4180: with "\n" alone, a carriage return inside a cell would not be quoted.
    narrow = frame.select_dtypes(["float16", "float32"]).columns
    return str(frame.astype(dict.fromkeys(narrow, "float64")).to_csv(index=False, lineterminator="\r\n"))


def _private_file(path: Path, content: bytes) -> None:
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(content)


def _fingerprint(folder: Path, num_sites: int, name: str) -> str:
    files = [folder / "experiment.toml"]
    for i in range(num_sites):
        files += [folder / str(i) / "site.toml", folder / str(i) / name]
    whole = hashlib.sha256()
    for file in files:
        # Digests have one length, so that moving bytes from one file to the next changes the whole.
        whole.update(hashlib.sha256(file.read_bytes()).digest() if file.is_file() else b"absent")
    return whole.hexdigest()


def _difference(stored: Path, wanted: Path) -> str:
    theirs, ours = stored / "experiment.toml", wanted / "experiment.toml"
    same = theirs.is_file() and theirs.read_bytes() == ours.read_bytes()
    # The experiment declares the sites' rows, so that other data mostly show as another experiment.
    what = "with other rows, or files that were changed" if same else "of another experiment or other data"
    return f"holds sites {what}: remove it, or choose another output folder"
