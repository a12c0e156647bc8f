"""What every target is held to besides its own bar: memory and time."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

# Runs the code under test on a fuzzer's bytes, raises where a bar is missed, and returns how many bytes it has read:
# a choice among prepared messages is one byte to the fuzzer, and a whole message to the code.
Target = Callable[[bytes], int]

MEMORY = 64 * 2**20  # bytes, on top of what was read
SECONDS_PER_KB = 0.01
TRIES = 5  # a slow moment of the machine is not slow code


class Exceeded(AssertionError):
    """Code that takes more memory or time for its input than it may."""


def execute(target: Target, data: bytes, *, memory: bool, slower: float = 1.0) -> None:
    """Runs a target once, and again where that took long or its memory is asked for.

    Args:
        target: gives the same for the same bytes.
        data: the input.
        memory: measure it, which takes several times as long.
        slower: factor on the time that is allowed, where the code is instrumented.

    Raises:
        Exceeded: memory or time.
    """
    seconds, size = _seconds(target, data)
    allowed = slower * SECONDS_PER_KB * max(1.0, size / 1024)
    for _ in range(TRIES):
        if seconds <= allowed:
            break
        seconds = min(seconds, _seconds(target, data)[0])
    else:
        raise Exceeded(f"{seconds:.3f} s for {size} bytes, {allowed:.3f} s are allowed")
    if memory and (peak := _peak(target, data)) > MEMORY + size:
        raise Exceeded(f"{peak >> 20} MB for {size} bytes")


def _seconds(target: Target, data: bytes) -> tuple[float, int]:
    """Processor time of this thread, and what the target returned."""
    start = time.thread_time()
    size = target(data)
    return time.thread_time() - start, size


def _peak(target: Target, data: bytes) -> int:
    tracemalloc.start()
    try:
        target(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
