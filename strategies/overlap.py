"""Rounds that are under way at a time, each over a grid of its own, in a federation of separate processes.

In one process nothing is gained by it, and a round is made when it is asked for: the model is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from strategies.grids import RoundFacts, WrappedGrid
from tacit.errors import RunFailed

Replies = Callable[[], list[Message]]


class TellingGrid(Protocol):
    """A grid that tells what happened in its last exchange."""

    facts: RoundFacts

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See Flower's `Grid`."""
        ...


class AtOnce(WrappedGrid):
    """Several exchanges at a time; as a grid it is the first of those that it has.

    To be used in a `with`: nobody works on a round any more when it has ended.

    Args:
        grid: the first.
        lanes: the first and the others; round r goes over that of number r mod their number.
        stop: ends the exchanges that are under way.
    """

    def __init__(self, grid: Grid, lanes: Sequence[TellingGrid], stop: threading.Event) -> None:
        super().__init__(grid)
        self.facts = RoundFacts()
        self._lanes, self._stop = lanes, stop
        self._pool = ThreadPoolExecutor(len(lanes), thread_name_prefix="cohort")

    def begin(self, number: int, messages: Sequence[Message], timeout: float) -> Replies:
        """Begins a round's exchange; to be called for its replies, whose facts are then `facts`."""
        lane = self._lanes[number % len(self._lanes)]
        future = self._pool.submit(lambda: list(lane.send_and_receive(messages, timeout=timeout)))

        def replies() -> list[Message]:
            found = future.result()
            self.facts = lane.facts
            return found

        return replies

    def close(self) -> None:
        """Ends what is under way."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


class Stoppable(WrappedGrid):
    """A grid that a thread uses until the thread is told to stop.

    Args:
        grid: of this thread alone.
        stop: says so; whoever sends or asks for messages then ends with `RunFailed`.
    """

    def __init__(self, grid: Grid, stop: threading.Event) -> None:
        super().__init__(grid)
        self._stop = stop

    @property
    def progress(self) -> Mapping[str, float]:
        """See `server.flower_wire.SteadyGrid`."""
        found: Mapping[str, float] = getattr(self._grid, "progress", {})
        return found

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See Flower's `Grid`."""
        self._check()
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See Flower's `Grid`."""
        self._check()
        return super().pull_messages(message_ids)

    def _check(self) -> None:
        if self._stop.is_set():
            raise RunFailed("the run has ended")
