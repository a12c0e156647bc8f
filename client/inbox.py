"""What an agent keeps in its site's folder beside what the app keeps: which node it is, and what it has to answer."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from client.flower_wire import Delivery
from tacit.durable import usable, write_file
from tacit.errors import StorageError

LOG: Final = logging.getLogger(__name__)


class Inbox:
    """The one message that this node has taken and not answered, in a file.

    Attributes:
        tries: how often the app has begun with it, in this process and before.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.tries = path, 0
        self._delivery: Delivery | None = None
        with suppress(FileNotFoundError):
            self._read(path.read_bytes())

    def _read(self, content: bytes) -> None:
        try:
            self.tries, self._delivery = content[0], Delivery.decode(content[1:])
        except Exception:  # cut short by a crash: then nothing was answered, and the message is lost
            self.tries, self._delivery = 0, None

    def load(self) -> Delivery | None:
        """The message, if there is one."""
        return self._delivery

    def save(self, delivery: Delivery) -> None:
        """Keeps a new one."""
        self._delivery, self.tries = delivery, 0
        self._write()

    def tried(self) -> None:
        """The app begins with it."""
        self.tries += 1
        self._write()

    def clear(self) -> None:
        """It is answered, or not waited for any more."""
        self._delivery, self.tries = None, 0
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        assert self._delivery is not None
        try:
            _write(self._path, bytes([min(self.tries, 255)]) + self._delivery.encode())
        except (
            StorageError
        ) as error:  # answered all the same, unless this process dies; the app has its own files
            LOG.warning("%s", error)


@contextmanager
def alone(site: Path) -> Iterator[None]:
    """Within it, no other agent takes part for this site on this machine; `StorageError` when one does already."""
    folder = site / "flower"
    folder.mkdir(mode=0o700, exist_ok=True)
    with open(os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageError(f"{site}: another agent takes part for this site") from None
        yield


def known_node(site: Path) -> int:
    """The number that this site's node had when it was last connected, or 0."""
    try:
        return int(json.loads((site / "flower" / "node.json").read_bytes())["node"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def note_node(site: Path, number: int) -> None:
    """Keeps the number for the next start; without it a node that was killed has to wait a minute."""
    try:
        _write(site / "flower" / "node.json", json.dumps({"node": number}).encode())
    except StorageError as error:
        LOG.warning("%s", error)


def _write(path: Path, content: bytes) -> None:
    """Replaces a small private file at once. Not fsynced: a lost message is a message that was not answered."""
    with usable(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(path, content, durable=False)
