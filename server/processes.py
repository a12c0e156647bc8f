"""Processes of ours: ended with all that they started, and not lost when somebody presses Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SECONDS = 3.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_group(process: subprocess.Popen[bytes], patience: float = STOP_SECONDS) -> None:
    """Ends a group leader and its whole process group: SIGTERM, and after `patience` seconds SIGKILL."""
    _signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + patience
    # poll() first: until its leader has been waited for, a group never looks empty.
    while time.monotonic() < deadline and (process.poll() is None or _signal_group(process.pid, 0)):
        time.sleep(0.05)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Within it the first Ctrl-C or SIGTERM raises `KeyboardInterrupt`, and others are ignored. Main thread only.

    Whoever is impatient must not be able to stop the clearing up, which takes seconds.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    with _handling(interrupt):
        yield


@contextmanager
def postponed_interrupt() -> Iterator[None]:
    """Ctrl-C and SIGTERM at its end: one that comes while a process starts must not lose track of it."""
    requests: list[int] = []
    with _handling(lambda number, frame: requests.append(number)):
        yield
    if requests:
        signal.raise_signal(requests[0])


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _signal_group(group: int, number: int) -> bool:
    """Sends a signal (0 = none) to a process group; whether anybody was there."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
