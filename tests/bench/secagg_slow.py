"""Rounds of the secure sum that take minutes: Flower's server in full, late drop-outs, a ring of a thousand clients.

CPU seconds, one thread, as in `tests.bench.secagg`. A late drop-out has dealt its shares and sends no vector: the
server must open its mask key and take out its masks with everybody else.
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable
from statistics import median
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from tacit.secagg.in_process import Federation
from tacit.secagg.parameters import Rules
from tests.bench import flower_secagg
from tests.bench.secagg import LENGTH, RULES, MeasuredAttempt, Meter, N, Row, encode, row

LATE = 20
RING, RING_LENGTH = 1000, 100_000
RING_RULES = Rules(max_corrupt=100, max_dropouts=100, c_int=2**16)
BYTES_PER_PAIR = 200  # that the server may hold; a pair is a dealer and one recipient of its shares


def run() -> list[Row]:
    """All rows."""
    return [*_against_flower(), *_ring()]


def _against_flower() -> list[Row]:
    """The server of n = 100 at d = 1e6, without drop-outs and with 20 late ones, beside Flower's in full."""
    rows, bars = [], {0: 100, LATE: 50}
    encoded = encode(LENGTH)[1]
    for dropped, bar in bars.items():
        attempt = MeasuredAttempt(Federation(N, RULES), [encoded] * N, {"mask": range(dropped)})
        attempt.run()
        threshold, ours = attempt.server.cohort.parameters.threshold, attempt.server.seconds
        theirs = flower_secagg.server_seconds(N, threshold, LENGTH, dropped)
        # Own masks of those that are there, masks of the others with each of them.
        floor = (N - dropped) * (median(attempt.unpacks) + median(attempt.masks) * (1 + dropped))
        print(f"  {dropped} late drop-outs: server {ours:.3f} s, floor {floor:.3f} s, Flower {theirs:.1f} s")
        rows += [
            row(
                f"server, n=100 d=1e6, {dropped} late drop-outs, Flower's / ours",
                theirs / ours,
                bar,
                "higher",
            )
        ]
    return rows


def _ring() -> list[Row]:
    """1000 clients with 276 neighbours each, 100 of them late drop-outs: the whole round, and the server's memory."""
    encoded = encode(RING_LENGTH)[1]
    attempt = MeasuredAttempt(Federation(RING, RING_RULES), [encoded] * RING, {"mask": range(0, RING, 10)})
    server = attempt.server = WeighedServer(attempt.server.machine)
    start = time.process_time()
    aggregate = attempt.run()
    assert aggregate.num_clients == RING - 100
    assert (aggregate.values == (RING - 100) * encoded.values).all()
    degree = attempt.server.cohort.parameters.neighbours
    allowed = 4 * 4 * RING_LENGTH + BYTES_PER_PAIR * RING * degree
    print(f"  n = {RING}, k = {degree}: {time.process_time() - start:.0f} s for all machines")
    print(f"  a client {attempt.client_seconds():.3f} s")
    print(f"  a client uploads {max(attempt.uploaded())} bytes")
    for step, (held, peak) in server.memory.items():
        print(f"  server before {step}: holds {held / 1e6:.1f} MB; {peak / 1e6:.1f} MB more inside the call")
    most = max(held + peak for held, peak in server.memory.values())
    return [row("server memory, n=1000 k=276 d=1e5 / (4 models + 200 bytes a pair)", most / allowed, 1.0)]


class WeighedServer(Meter):
    """A server machine that is weighed before each step that works on all clients, and within it.

    Attributes:
        memory: step -> bytes that the machine holds before it, and the most that the step allocates on top. The latter
            slows the step down, and its requests for all clients are part of it.
    """

    STEPS = ("deal_requests", "mask_requests", "confirm_requests", "unmask_requests", "aggregate")

    def __init__(self, machine: Any) -> None:
        super().__init__(machine)
        self.memory: dict[str, tuple[int, int]] = {}

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        timed, name = super()._timed(method), method.__name__
        if name not in self.STEPS:
            return timed

        def call(*arguments: Any) -> Any:
            held = deep_size(vars(self.machine))
            tracemalloc.start()
            try:
                result = timed(*arguments)
                self.memory[name] = held, tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            return result

        return call


def deep_size(root: object) -> int:
    """Bytes of everything that can be reached from an object, code apart, each thing once."""
    seen: dict[int, object] = {}
    waiting, code = [root], (type, ModuleType, FunctionType, BuiltinFunctionType)
    while waiting:
        thing = waiting.pop()
        if id(thing) not in seen and not isinstance(thing, code):
            seen[id(thing)] = thing
            waiting += gc.get_referents(thing)
    return sum(sys.getsizeof(thing) for thing in seen.values())
