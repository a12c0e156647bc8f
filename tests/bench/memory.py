"""How much memory a program and all that it has started hold, by /proc."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.1


@dataclass
class Memory:
    """MB of all processes together.

    Attributes:
        resident: RSS, which counts what processes share once for each.
        proportional: PSS, which counts it once.
        processes: how many.
    """

    resident: float = 0.0
    proportional: float = 0.0
    processes: int = 0


def memory_of(group: int) -> Memory:
    """Of a process group and of all children of its processes."""
    total = Memory()
    for process in members(group):
        try:
            lines = (process / "smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        total.resident += kilobytes["Rss"] / 1000
        total.proportional += kilobytes["Pss"] / 1000
        total.processes += 1
    return total


def members(group: int) -> list[Path]:
    """/proc folders of the processes of a group, and of what they have started, in whatever group."""
    parents: dict[int, tuple[int, int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(process.name)] = (int(fields[1]), int(fields[2]))
    found = {pid for pid, (_, its_group) in parents.items() if its_group == group}
    while more := {pid for pid, (parent, _) in parents.items() if parent in found} - found:
        found |= more
    return [Path("/proc") / str(pid) for pid in found]


@contextmanager
def largest(group: int) -> Iterator[Memory]:
    """The largest that `memory_of` sees within the `with` block; resident and proportional each at its own moment."""
    peak, done = Memory(), threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            now = memory_of(group)
            peak.resident = max(peak.resident, now.resident)
            peak.proportional = max(peak.proportional, now.proportional)
            peak.processes = max(peak.processes, now.processes)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
