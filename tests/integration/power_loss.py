"""What a disk may hold after a power failure, by the calls that were made before it.

What was fsynced is there. Of what was written since to a file, any of it may be: nothing, all, the first sectors only,
or a file as long as it should be with nothing in it. A file whose folder was not synced may be gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from syscalls import Call

SECTOR = 512


@dataclass(frozen=True)
class OnDisk:
    """A file.

    Attributes:
        content: that an fsync has made last.
        newest: with what was written since.
        is_named: its folder has been synced since it was made.
    """

    content: bytes = b""
    newest: bytes = b""
    is_named: bool = False

    def written(self, name: str, data: bytes) -> OnDisk:
        # A head is written over from its start; a chain is appended to.
        newest = data + self.newest[len(data) :] if name.endswith(".head") else self.newest + data
        return replace(self, newest=newest)

    def outcomes(self) -> set[bytes | None]:
        """What it may be after a crash; None = not there."""
        old, new = self.content, self.newest
        found: set[bytes | None] = {old, new}
        if new != old and len(new) > SECTOR:
            found |= {new[:end] for end in range(len(old) // SECTOR * SECTOR + SECTOR, len(new), SECTOR)}
        if len(new) > len(old) and old:
            found.add(old + bytes(len(new) - len(old)))
        return found if self.is_named else {*found, None}


Files = dict[str, OnDisk]


def cuts(calls: Sequence[Call], folder: Path, chains: Sequence[str]) -> Iterator[tuple[int, Files]]:
    """The files of these chains before each call that matters, and after the last."""
    names = {str(folder / name): name for chain in chains for name in (chain, chain + ".head")}
    files: Files = {}
    for place, call in enumerate(calls):
        name = names.get(call.path, "")
        is_sync = call.kind == "fsync" and any(Path(path).parent == Path(call.path) for path in names)
        if not name and not is_sync and not call.path.endswith(".answer"):
            continue
        yield place, dict(files)
        if call.kind == "create":
            files[name] = OnDisk()
        elif call.kind == "write":
            files[name] = files[name].written(name, call.data)
        elif name:
            files[name] = replace(files[name], content=files[name].newest)
        elif is_sync:
            for other, file in files.items():
                if (folder / other).parent == Path(call.path):
                    files[other] = replace(file, is_named=True)
    yield len(calls), dict(files)


def lost_in(files: Files, folder: Path) -> Iterator[Path]:
    """A site's folder for each state that the disk may be in; one file at a time is in doubt, the others are new."""
    states = [{name: file.newest for name, file in files.items()}]
    for name, file in files.items():
        others = {other: file.content for other, file in files.items()}
        states += [{**others, name: outcome} for outcome in file.outcomes()]
    done = []
    for number, state in enumerate(states):
        if state in done:
            continue
        done.append(state)
        for name, content in state.items():
            path = folder / str(number) / name
            if content is not None:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.write_bytes(content)
                path.chmod(0o600)
        yield folder / str(number)
