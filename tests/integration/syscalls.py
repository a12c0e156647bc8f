"""Which writes, fsyncs and renames a process has asked of the system, in order: by patches in it, or by strace."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call that has succeeded.

    Attributes:
        kind: "create" (file or folder), "write", "fsync" or "rename".
        path: of the file; of a rename, the new one.
        data: that was written; empty where strace or a buffered file hides it.
    """

    kind: str
    path: str
    data: bytes = b""


def record(name: str) -> None:
    """To be called in a process: from here on it writes its calls down, in `calls-NAME.txt` of the world's folder.

    Sees what goes through the functions of `os`; what a buffered file writes is not among it, but its fsync is.
    """
    log = os.open(
        Path(os.environ["TACIT_STATE"]).parent / f"calls-{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND
    )
    real_write = os.write

    def note(kind: str, path: str, data: bytes = b"") -> None:
        real_write(log, json.dumps([kind, path, data.hex()]).encode() + b"\n")

    def patch(name: str, around: Callable[..., Any]) -> None:
        real = getattr(os, name)
        setattr(os, name, lambda *arguments, **named: around(real, *arguments, **named))

    def path_of(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    def write(real: Callable[..., int], descriptor: int, data: bytes) -> int:
        written = real(descriptor, data)
        note("write", path_of(descriptor), bytes(data[:written]))
        return written

    def fsync(real: Callable[..., None], descriptor: int) -> None:
        real(descriptor)
        note("fsync", path_of(descriptor))

    def create(real: Callable[..., int], path: Any, flags: int, *rest: Any, **named: Any) -> int:
        is_new = bool(flags & os.O_CREAT) and not os.path.lexists(path)
        descriptor = real(path, flags, *rest, **named)
        if is_new:
            note("create", os.path.abspath(path))
        return descriptor

    def mkdir(real: Callable[..., None], path: Any, *rest: Any, **named: Any) -> None:
        real(path, *rest, **named)
        note("create", os.path.abspath(path))

    def rename(real: Callable[..., None], source: Any, target: Any, **named: Any) -> None:
        real(source, target, **named)
        note("rename", os.path.abspath(target))

    for called, around in (("write", write), ("fsync", fsync), ("open", create), ("mkdir", mkdir)):
        patch(called, around)
    for called in ("rename", "replace"):
        patch(called, rename)


def recorded(folder: Path, name: str) -> list[Call]:
    """What `record` has written down."""
    lines = (folder / f"calls-{name}.txt").read_text().splitlines()
    return [Call(kind, path, bytes.fromhex(data)) for kind, path, data in map(json.loads, lines)]


def wait_to_be_traced(name: str) -> None:
    """To be called in a process: it goes on when somebody traces it."""
    folder = Path(os.environ["TACIT_STATE"]).parent
    (folder / f"waits-{name}").touch()
    while not (folder / f"traced-{name}").exists():
        time.sleep(0.01)


def trace(folder: Path, name: str, watched: BaseProcess) -> subprocess.Popen[str] | None:
    """Has strace follow a process that waits for it; None where there is no strace, or it may not."""
    while not (folder / f"waits-{name}").exists():
        assert watched.exitcode is None
        time.sleep(0.01)
    program, process = shutil.which("strace"), None
    if program is not None:
        calls = "trace=write,fsync,openat,mkdir,rename,renameat,renameat2"
        options = (
            "-f",
            "-y",
            "-s",
            "0",
            "-e",
            calls,
            "-o",
            str(folder / f"strace-{name}"),
            "-p",
            str(watched.pid),
        )
        process = subprocess.Popen([program, *options], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        if "attached" not in process.stderr.readline():
            process.wait()
            process = None
    (folder / f"traced-{name}").touch()
    return process


_LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (\d+)")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_OPENED = re.compile(r"<([^>]*)>")


def traced(folder: Path, name: str) -> list[Call]:
    """What strace has seen. What a file is made by cannot be told from what it is opened by, so that is left out."""
    calls, begun = [], dict[str, str]()
    for line in (folder / f"strace-{name}").read_text().splitlines():
        thread = line.split(maxsplit=1)[0]
        if line.endswith("<unfinished ...>"):
            begun[thread] = line.removesuffix("<unfinished ...>").rstrip()
            continue
        if " resumed>" in line:
            line = begun.pop(thread) + line.partition(" resumed>")[2]
        if (match := _LINE.match(line)) is None:
            continue
        called, arguments = match[1], match[2]
        if called in ("write", "fsync"):
            if (opened := _OPENED.search(arguments)) is not None:
                calls.append(Call(called, opened[1]))
        elif called.startswith("rename"):
            calls.append(Call("rename", _QUOTED.findall(arguments)[-1]))
    return calls
