"""The attempt at a secure sum that a server is making, in files: one per step, written before the next step's requests.

begun.json   the invitation, the server's key of this attempt, who is invited
0.json ...   the answers of M0 to M4
2.total      the sum of the masked vectors
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from strategies.attempts import AttemptLog, Begun, Step
from tacit.durable import new_folder, usable, write_file
from tacit.errors import StorageError

STEPS: Final = 5


class AttemptFile(AttemptLog):
    """An `AttemptLog` in a folder, which need not exist yet.

    Every method raises `StorageError` where the disk refuses, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, begun: Begun) -> None:
        """See `AttemptLog`."""
        self.drop()
        with _usable(self._folder):
            new_folder(self._folder)
            fields = {
                "request": begun.request.hex(),
                "secret": begun.secret.hex(),
                "invited": begun.invited,
                "counters": {str(index): counter for index, counter in begun.counters.items()},
            }
            write_file(self._folder / "begun.json", json.dumps(fields).encode())

    def keep(self, number: int, step: Step) -> None:
        """See `AttemptLog`."""
        with _usable(self._folder):
            if step.total:
                write_file(self._folder / f"{number}.total", step.total, sync_name=False)
            fields = {
                "answers": [answer.hex() for answer in step.answers],
                "bytes_up": {str(node): size for node, size in step.bytes_up.items()},
                "refusals": dict(step.refusals),
            }
            write_file(self._folder / f"{number}.json", json.dumps(fields).encode())

    def kept(self) -> tuple[Begun, list[Step]] | None:
        """See `AttemptLog`."""
        begun, steps = _read(self._folder / "begun.json"), list[Step]()
        if begun is None:
            return None
        with _usable(self._folder):
            for number in range(STEPS):
                fields, total = _read(self._folder / f"{number}.json"), self._folder / f"{number}.total"
                if fields is None:
                    break
                answers = tuple(bytes.fromhex(answer) for answer in fields["answers"])
                words = total.read_bytes() if total.exists() else b""
                sizes = {int(node): int(size) for node, size in fields["bytes_up"].items()}
                steps.append(Step(answers, words, sizes, fields["refusals"]))
            counters = {int(index): int(counter) for index, counter in begun["counters"].items()}
            request, secret = bytes.fromhex(begun["request"]), bytes.fromhex(begun["secret"])
            return Begun(request, secret, tuple(begun["invited"]), counters), steps

    def drop(self) -> None:
        """See `AttemptLog`."""
        with _usable(self._folder):
            (self._folder / "begun.json").unlink(missing_ok=True)  # first: the rest is nothing without it
            shutil.rmtree(self._folder, ignore_errors=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: cannot be read: {error}") from None
    return content


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        with usable(folder):
            yield
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StorageError(f"{folder}: damaged") from None
