"""What a person sees of an agent: one line a round, and on a terminal what it is doing now."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from tacit.logs import visible

ENDS_A_ROUND = ("train", "train.ideal", "train.tacit4")
DOING = {
    "train": "training",
    "train.ideal": "training",
    "train.tacit0": "training",
    "train.tacit1": "dealing shares",
    "train.tacit2": "masking the update",
    "train.tacit3": "confirming whose updates are in",
    "train.tacit4": "opening the sum",
}


class Screen(Protocol):
    """Where the lines go."""

    def line(self, text: str) -> None:
        """One that stays."""
        ...

    def now(self, text: str) -> None:
        """What is being done, until the next call."""
        ...


class Lines:
    """Standard output that is not a terminal: lines only."""

    def line(self, text: str) -> None:
        """See `Screen`."""
        print(text, flush=True)

    def now(self, text: str) -> None:
        """See `Screen`."""


@contextmanager
def screen() -> Iterator[Screen]:
    """A live line on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    from rich.live import Live
    from rich.text import Text

    # Drawn when something happens, not ten times a second: an idle agent is to be idle.
    with Live(Text(""), auto_refresh=False, transient=True) as live:

        class Terminal:
            def line(self, text: str) -> None:
                live.console.print(text, highlight=False, markup=False)

            def now(self, text: str) -> None:
                live.update(Text(text, style="dim"), refresh=True)

        yield Terminal()


class Follower:
    """Adds up what is seen of one round, and says it in a line when the round is over for this site."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._round, self._seconds, self._bytes = "", 0.0, 0

    def say(self, text: str) -> None:
        """A line of its own, with the time. Words of the coordinator's may be in it."""
        self._screen.line(f"{datetime.now():%H:%M:%S}  {visible(text)}")

    def waiting(self, text: str) -> None:
        """What is waited for."""
        self._screen.now(text)

    def asked(self, kind: str, name: str) -> None:
        """A message has come.

        Args:
            kind: its type.
            name: of the round that it begins; empty where it goes on with one.
        """
        if kind in DOING:
            if name:
                self._round, self._seconds, self._bytes = name, 0.0, 0
            self._screen.now(f"{self._round}: {DOING[kind]}")

    def answered(self, kind: str, refusal: str, seconds: float, num_bytes: int) -> None:
        """It has been answered: with an update, shares or signatures, or with a refusal and its reason."""
        self._seconds, self._bytes = self._seconds + seconds, self._bytes + num_bytes
        where = self._round if kind in DOING and self._round else kind
        if refusal:
            self.say(f"{where}: {refusal}")
        elif kind in ENDS_A_ROUND:
            self.say(f"{where}: done, {self._seconds:.1f} s of work, {_size(self._bytes)} sent")
        self._screen.now("waiting for the next message")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} kB"
