"""Ten sites and a server for as long as TACIT_SOAK_MINUTES says, one of them killed every half minute."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from crash_world import World
from evidence import check_evidence

NUM_SITES = 10
MINUTES = float(os.environ.get("TACIT_SOAK_MINUTES", "2"))
GROWTH = 1.05
SETTLED = 20  # rounds after its start, when a process has all in memory that it needs for one
SLACK = 4 * 2**20  # bytes: what an allocator keeps this time and not the next


class Memory:
    """Resident memory of each process, once it has settled and ever since."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._born: dict[int, int] = {}  # rounds complete when a process was first seen
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}

    def look(self) -> None:
        rounds = self._world.num_rounds
        for process in self._world.processes.values():
            pid = process.pid
            if pid is None or process.exitcode is not None:
                continue
            if rounds - self._born.setdefault(pid, rounds) >= SETTLED:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                self.last[pid] = pages * os.sysconf("SC_PAGE_SIZE")
                self.first.setdefault(pid, self.last[pid])

    @property
    def growth(self) -> float:
        """Of the process that has grown most."""
        return max((self.last[pid] - SLACK) / self.first[pid] for pid in self.first)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_D12_ten_sites_of_which_somebody_is_always_killed_keep_every_promise(tmp_path: Path) -> None:
    settings = (
        "training.rounds=100000",
        "secure_aggregation.max_dropouts=2",
        "secure_aggregation.deadline_seconds=60",  # nobody is late for want of a core
    )
    world = World(tmp_path, *settings, num_sites=NUM_SITES)
    rng, memory, kills = random.Random(12), Memory(world), 0
    end = time.monotonic() + 60 * MINUTES
    next_kill, next_look = time.monotonic() + rng.uniform(10, 50), 0.0

    def disturb() -> None:
        nonlocal next_kill, next_look, kills
        now = time.monotonic()
        if now >= next_look:
            memory.look()
            next_look = now + 1
        if now >= next_kill:
            world.kill(rng.choice(world.names))
            next_kill, kills = now + rng.uniform(10, 50), kills + 1

    world.run(disturb, seconds=60 * MINUTES + 120, until=lambda: time.monotonic() >= end)
    assert world.num_killed == kills >= MINUTES
    assert world.num_rounds > 10 * MINUTES
    assert memory.growth < GROWTH
    check_evidence(world)
    print(f"{kills} kills, {world.num_rounds} rounds, memory x {memory.growth:.3f}")
