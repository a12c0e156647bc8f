"""Files and folders that last: whole or not there, and on the disk, name and all, when a call returns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tacit.errors import StorageError


def write_file(path: Path, data: bytes, *, sync_name: bool = True, durable: bool = True) -> None:
    """Replaces a file atomically; mode 0600.

    Args:
        path: in a folder that is there.
        data: all of it.
        sync_name: wait for the name, too; without, somebody syncs the folder later.
        durable: wait for the disk. Without, the file outlives its process, but perhaps not a power failure.

    Raises:
        StorageError: the disk refuses; then the file is the old one, or the new one whose name may not last.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with usable(path):
        temporary.unlink(missing_ok=True)  # of a process that was killed; or somebody else's, open to others
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)  # a full disk has no room for it
            raise
        if sync_name and durable:
            sync_folder(path.parent)


def new_folder(folder: Path, *, durable: bool = True) -> None:
    """Makes a folder, mode 0700, unless it is there; the one around it is.

    Raises:
        StorageError: the disk refuses.
    """
    with usable(folder):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
            if durable:
                sync_folder(folder.parent)  # all that is synced in it is lost with its name


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk: a new file, or a rename, lasts only from then on.

    Raises:
        OSError: of the system.
    """
    if os.name == "nt":
        return  # Windows does not open folders
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """What the disk refuses within it is a `StorageError` with the name of the file, or else of `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{error.filename or path}: {error.strerror or error}") from None
