"""Kills at random moments of a run in a `crash_world`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from crash_world import World


class RandomKills:
    """Kills so often as it is told, mostly once a round, at any moment of it. To be given to `World.run`.

    Args:
        world: whose processes.
        seed: of the moments and of who it is.
        count: how often.
        victims: those that are killed at once, drawn each time.

    Attributes:
        recoveries: seconds from each kill of the server until the next one asked the sites for something.
    """

    def __init__(
        self, world: World, seed: int, count: int, victims: Callable[[random.Random], Sequence[str]]
    ) -> None:
        self._world, self._rng, self.left, self._victims = world, random.Random(seed), count, victims
        self.recoveries: list[float] = []
        self._waited: tuple[float, int] | None = None  # when the server was killed, and asked starts by then
        self._plan()

    def __call__(self) -> None:
        world, now = self._world, time.monotonic()
        if self._waited is not None and self._num_asked() > self._waited[1]:
            self.recoveries.append(now - self._waited[0])
            self._waited = None
        if self._at is None and world.num_rounds >= self._round:
            self._at = now + self._rng.uniform(0, self._seconds())
        if not self.left or self._at is None or now < self._at or self._waited is not None:
            return
        victims = [name for name in self._victims(self._rng) if name in world.processes]
        world.kill(*victims)
        self.left -= 1
        if "server" in victims:
            self._waited = now, self._num_asked()
        self._plan()

    def _plan(self) -> None:
        """The next kill: some time after one more round, or at any time after the last."""
        self._round = self._world.num_rounds + (self._rng.random() < 0.8)
        self._at: float | None = None

    def _seconds(self) -> float:
        """Twice what a round takes, by those that were made."""
        rounds = sorted(float(str(row["seconds"])) for row in self._world.rounds)
        return 2 * rounds[len(rounds) // 2] if rounds else 2.0

    def _num_asked(self) -> int:
        """How many starts of the server have asked the sites for anything."""
        return sum(next(run.rglob("*.asked"), None) is not None for run in self._world.spool.iterdir())
