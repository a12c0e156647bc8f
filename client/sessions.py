"""What a client keeps between the messages of one round, secrets included.

An agent keeps it in memory. A stock Flower node starts a process for each message, so there it lies in a folder of
the site that only its owner can read. It never travels.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from tacit.durable import new_folder, write_file
from tacit.errors import ProtocolError, StorageError
from tacit.secagg.client import ClientMachine
from tacit.secagg.encoding import HASH_BYTES, Reader, Writer
from tacit.update import EncodedUpdate

_LABEL: Final = "session"

MakeMachine = Callable[[], ClientMachine]


@dataclass
class Session:
    """One round at one client.

    Attributes:
        run: Tacit's id of the run.
        round: number of the round.
        model: digest of the global model that was trained from.
        experiment: digest of the experiment whose noise is in `encoded`; its price, and no other, is debited.
        encoded: the finished update; a later attempt on the same model sends it again unchanged. Empty once erased.
        machine: the protocol's state in the present attempt.
        attempt: its number.
        sent: whether `encoded` has been paid for, and so may have left.
    """

    run: str
    round: int
    model: bytes
    experiment: bytes
    encoded: EncodedUpdate
    machine: ClientMachine
    attempt: int = 1
    sent: bool = False

    @property
    def is_erased(self) -> bool:
        """Whether the update is gone, so that another attempt would have to make a new one."""
        return self.encoded.values.size == 0

    def erase(self) -> None:
        """Forgets the update. Best effort: a disk may keep what a file held before."""
        if self.encoded.values.flags.writeable:
            self.encoded.values[:] = 0
        self.encoded = EncodedUpdate(np.zeros(0, dtype=np.int64), self.encoded.clipped)

    def encode(self) -> bytes:
        """The whole session behind its hash, for a file that only this participant can read."""
        writer = Writer(_LABEL).text(self.run).number(self.round).data(self.model).data(self.experiment)
        writer.data(self.encoded.values.astype("<i8").tobytes()).number(self.encoded.clipped)
        body = writer.data(self.machine.export()).number(self.attempt).number(self.sent).finish()
        return hashlib.sha256(body).digest() + body

    @classmethod
    def decode(cls, data: bytes, make_machine: MakeMachine) -> Session:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        body = data[HASH_BYTES:]
        if hashlib.sha256(body).digest() != data[:HASH_BYTES]:
            raise ProtocolError("encoding", "the hash of a session does not fit")
        reader = Reader(body, _LABEL)
        run, number, model, experiment = reader.text(), reader.number(), reader.data(), reader.data()
        values, clipped, state = reader.data(), reader.number(), reader.data()
        attempt, sent = reader.number(), reader.number()
        reader.end()
        if len(values) % 8 or max(clipped, sent) > 1:
            raise ProtocolError("encoding", "a vector is cut short, or a flag is neither 0 nor 1")
        encoded = EncodedUpdate(np.frombuffer(values, dtype="<i8").astype(np.int64), bool(clipped))
        machine = make_machine().restore(state)
        return cls(run, number, model, experiment, encoded, machine, attempt, bool(sent))


class Sessions(Protocol):
    """Keeps the newest session of a site."""

    def load(self, make_machine: MakeMachine) -> Session | None:
        """The session, or None; `make_machine` gives the machine that its state is restored into."""
        ...

    def save(self, session: Session) -> None:
        """Replaces the session."""
        ...

    def alone(self) -> AbstractContextManager[None]:
        """Within it, no other process takes a step of this site's."""
        ...


class MemorySessions:
    """In this process; gone with it."""

    def __init__(self) -> None:
        self._session: Session | None = None

    def load(self, make_machine: MakeMachine) -> Session | None:
        """See `Sessions`."""
        return self._session

    def save(self, session: Session) -> None:
        """See `Sessions`."""
        self._session = session

    def alone(self) -> AbstractContextManager[None]:
        """See `Sessions`: an agent takes one message after the other, and no two agents one site."""
        return nullcontext()


class FolderSessions:
    """One file, mode 0600, in a folder of mode 0700.

    Guarantees:
        Of two processes that are given messages at the same time, one waits until the other has answered.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "sessions" / "round"

    def load(self, make_machine: MakeMachine) -> Session | None:
        """See `Sessions`; `StorageError` when the file is damaged or open to others."""
        try:
            with self._file.open("rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                    raise StorageError(f"{self._file}: lets other users in; delete it, a round will be lost")
                return Session.decode(file.read(), make_machine)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self._file}: cannot be read: {error.strerror}") from None
        except (ProtocolError, StorageError) as error:
            raise StorageError(f"{self._file}: damaged session: {error}") from None

    def save(self, session: Session) -> None:
        """See `Sessions`; `StorageError` when it cannot be written.

        It is on the disk when this returns: what the journal says next must not outlive it.
        """
        new_folder(self._file.parent)
        write_file(self._file, session.encode())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """See `Sessions`; `StorageError` when the folder cannot be used."""
        path = self._file.with_name("lock")
        try:
            new_folder(path.parent)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"{path}: cannot be locked: {error.strerror}") from None
        with os.fdopen(descriptor, "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                raise StorageError(f"{path}: cannot be locked: {error.strerror}") from None
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # a process that training has forked may have it open still
