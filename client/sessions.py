"""What a client keeps between the messages of one round, secrets included.

An agent keeps it in memory. A stock Flower node starts a process for each message, so there it lies in a folder of
the site that only its owner can read. It never travels.
"""

from __future__ import annotations

import io
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tacit.errors import StorageError
from tacit.secagg.client import ClientMachine
from tacit.update import EncodedUpdate


@dataclass
class Session:
    """One round at one client.

    Attributes:
        run: Tacit's id of the run.
        round: number of the round.
        model: digest of the global model that was trained from.
        encoded: the finished update; a later attempt on the same model sends it again unchanged.
        machine: the protocol's state in the present attempt.
        debited: whether the ledger has paid for `encoded`.
    """

    run: str
    round: int
    model: bytes
    encoded: EncodedUpdate
    machine: ClientMachine
    debited: bool = False


class Sessions(Protocol):
    """Keeps the newest session of a site."""

    def load(self) -> Session | None:
        """The session, or None."""
        ...

    def save(self, session: Session) -> None:
        """Replaces the session."""
        ...


class MemorySessions:
    """In this process; gone with it."""

    def __init__(self) -> None:
        self._session: Session | None = None

    def load(self) -> Session | None:
        """See `Sessions`."""
        return self._session

    def save(self, session: Session) -> None:
        """See `Sessions`."""
        self._session = session


class FolderSessions:
    """One file, mode 0600, in a folder of mode 0700."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "sessions" / "round.npz"

    def load(self) -> Session | None:
        """See `Sessions`; `StorageError` when the file is damaged."""
        try:
            content = self._file.read_bytes()
        except FileNotFoundError:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as fields:
                return Session(
                    run=str(fields["run"]),
                    round=int(fields["round"]),
                    model=fields["model"].tobytes(),
                    encoded=EncodedUpdate(fields["values"], bool(fields["clipped"])),
                    machine=ClientMachine.restore(fields["machine"].tobytes(), secrets.token_bytes),
                    debited=bool(fields["debited"]),
                )
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise StorageError(f"{self._file}: damaged session: {error}") from None

    def save(self, session: Session) -> None:
        """See `Sessions`."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            run=np.array(session.run),
            round=np.array(session.round),
            model=np.frombuffer(session.model, dtype=np.uint8),
            values=session.encoded.values,
            clipped=np.array(session.encoded.clipped),
            machine=np.frombuffer(session.machine.export(), dtype=np.uint8),
            debited=np.array(session.debited),
        )
        self._file.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = self._file.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._file)
