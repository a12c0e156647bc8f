"""A chain of records in a file that one process owns: locked, private, on the disk before `append` returns.

Beside the file lies `<name>.head`, the number of records and the hash of the last, written after each record.
A file that is behind its head, or behind what others remember, is an old copy.

Guarantees:
    When `append` returns, the record is in the file and, if durable, on the disk.
    A changed byte, a missing record, a second owner and access by other users are refused.
    A file that is opened again by the process that closed it is read again if anything about it has changed.
    After a failed write or fsync nothing more is written: what reached the disk is then unknown (Rebello et
    al., "Can applications recover from fsync failures?", USENIX ATC 2020).
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from tacit.durable import sync_folder
from tacit.errors import StorageError
from tacit.privacy import chain

PATIENCE_SECONDS: Final = (
    5.0  # that an owner may hold a file; it needs a moment, on a busy machine a longer one
)
_FLAGS: Final = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Head(NamedTuple):
    """How far a chain is: number of records and hash of the last. Says nothing about what they are."""

    counter: int
    hash: str


class Closing:
    """Something that is open for the length of a `with`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives it free for other processes. Closing twice is allowed."""
        raise NotImplementedError


class ChainFile(Closing):
    """An open chain. Made by `ChainFile.open`, which explains the arguments."""

    def __init__(self, path: Path, descriptor: int, durable: bool) -> None:
        self._path, self._descriptor, self._durable = path, descriptor, durable
        self._torn = b""
        self._failed = False
        self._stamp: tuple[int, ...] = ()  # of the file when it was closed
        self.head, self.num_torn = Head(0, chain.GENESIS), 0

    @classmethod
    def open(
        cls, path: Path, *, witness: tuple[int, str] | None = None, durable: bool = True
    ) -> tuple[ChainFile, tuple[dict[str, Any], ...]]:
        """Opens a chain, or creates it, for this process alone.

        Args:
            path: the file; it must not be accessible to other users, nor its folder.
            witness: the furthest head that somebody else has seen.
            durable: wait for the disk at each record.

        Returns:
            The chain and its records so far.

        Raises:
            StorageError: in use, accessible to others, damaged, or behind its head or witness.
        """
        try:
            if not path.parent.exists():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if durable:
                    sync_folder(path.parent.parent)
            _check_private(path.parent, os.stat(path.parent))
            descriptor = os.open(path, _FLAGS | os.O_RDWR | os.O_APPEND, 0o600)
        except OSError as error:
            raise _failure(path, "cannot be opened", error) from None
        file = cls(path, descriptor, durable)
        try:
            file._lock()
            records = file._load(witness)
        except BaseException:
            file.close()
            raise
        return file, records

    def close(self) -> None:
        """Gives the file free for other processes. Closing twice is allowed."""
        if self._descriptor >= 0:
            self._stamp = _stamp(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = -1

    def reopen(self) -> bool:
        """Opens the closed file again for this process alone, without reading it.

        Returns:
            Whether it is the file that was closed, unchanged since; else it stays closed, and `open` must read it.

        Raises:
            StorageError: in use, or accessible to others.
        """
        try:
            _check_private(self._path.parent, os.stat(self._path.parent))
            self._descriptor = os.open(self._path, _FLAGS & ~os.O_CREAT | os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _failure(self._path, "cannot be opened", error) from None
        before = self._stamp
        try:
            self._lock()
            # What somebody who takes no lock changes within one tick of the clock, at the same length, is found later.
            same = (
                not self._failed
                and _stamp(self._descriptor) == before
                and self._read_head(new=False) == self.head
            )
        except BaseException:
            self.close()
            raise
        if not same:
            self.close()
        return same

    def append(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Writes one record, and returns it with its links when it is safe.

        Raises:
            StorageError: it could not be written; so will every later record, until the file is opened again.
        """
        if self._failed or self._descriptor < 0:
            raise StorageError(f"{self._path}: closed, or an earlier write failed; open it again")
        line, record = chain.encode(fields, self.head.counter + 1, self.head.hash, self._torn)
        try:
            self._write(self._descriptor, line)
            self.head, self._torn = Head(record["sequence"], record["hash"]), b""
            self._write_head()
        except OSError as error:
            self._failed = True
            raise _failure(self._path, "cannot be written, nothing may be released", error) from None
        return record

    def _lock(self) -> None:
        _check_private(self._path, os.fstat(self._descriptor))
        started, wait = time.monotonic(), 0.01
        while True:
            try:
                return fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() - started >= PATIENCE_SECONDS:
                    break
                time.sleep(wait)
                wait = min(2 * wait, 0.1)
            except OSError as error:
                raise _failure(self._path, "cannot be locked", error) from None
        raise StorageError(
            f"{self._path}: in use by another process, which has not let go of it in {PATIENCE_SECONDS:g} seconds; "
            "try again, or end the other process"
        )

    def _load(self, witness: tuple[int, str] | None) -> tuple[dict[str, Any], ...]:
        try:
            with open(self._descriptor, "rb", closefd=False) as file:
                data = file.read()
            head = self._read_head(new=not data)
            found = chain.decode(data, self._path)
            for counter, digest in (head, witness or head):
                hashes = [chain.GENESIS, *(record["hash"] for record in found.records)]
                if not 0 <= counter < len(hashes) or hashes[counter] != digest:
                    raise chain.damaged(self._path, found.torn_line)
            self._torn, self.num_torn = found.torn, found.num_torn
            if found.records:
                self.head = Head(len(found.records), found.records[-1]["hash"])
            if head != self.head or not data:
                self._write_head()
                if self._durable:
                    sync_folder(self._path.parent)  # a file's own fsync does not make its name durable
        except OSError as error:
            raise _failure(self._path, "cannot be read", error) from None
        return found.records

    @property
    def _head_path(self) -> Path:
        return self._path.with_name(self._path.name + ".head")

    def _read_head(self, *, new: bool) -> Head:
        """The head on disk. A new file may lack it, because the file is made first."""
        try:
            descriptor = os.open(self._head_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if new:
                return self.head
            raise chain.damaged(self._head_path, 1) from None
        with open(descriptor, "rb") as file:
            _check_private(self._head_path, os.fstat(descriptor))
            text = file.read(256)
        match = re.fullmatch(rb"(\d{20}) ([0-9a-f]{64})\n", text)
        if match is None and not (new and not text):
            raise chain.damaged(self._head_path, 1)
        return Head(int(match[1]), match[2].decode()) if match else self.head

    def _write_head(self) -> None:
        # In place and shorter than a disk sector: it is replaced whole, and needs no space on a full disk.
        descriptor = os.open(self._head_path, _FLAGS | os.O_WRONLY, 0o600)
        try:
            self._write(descriptor, f"{self.head.counter:020d} {self.head.hash}\n".encode())
        finally:
            os.close(descriptor)

    def _write(self, descriptor: int, data: bytes) -> None:
        while data:
            data = data[os.write(descriptor, data) :]
        if self._durable:
            os.fsync(descriptor)


def _stamp(descriptor: int) -> tuple[int, ...]:
    """What changes with a file's content."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _check_private(path: Path, status: os.stat_result) -> None:
    if (mode := stat.S_IMODE(status.st_mode)) & 0o077:
        raise StorageError(
            f"{path}: mode {mode:04o} lets other users in; if nobody changed it, run: chmod go-rwx '{path}'"
        )


def _failure(path: Path, what: str, error: OSError) -> StorageError:
    return StorageError(f"{path}: {what}: {error.strerror or error}")
