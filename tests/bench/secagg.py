"""What a round of the secure sum costs, beside ciphers and additions that it cannot do without, and beside Flower's.

n = 100 clients on the complete graph, d = 1e6, c = 10, D = 20: words of 24 bits. One thread; seconds are CPU seconds,
so that other processes on the machine do not count. Floors are measured between the steps of the round itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from threadpoolctl import threadpool_limits

from tacit.privacy.noise import Stream
from tacit.secagg.contexts import cohort_of
from tacit.secagg.encoder import Encoder
from tacit.secagg.identity import _check_signature
from tacit.secagg.in_process import STEPS, Attempt, Federation
from tacit.secagg.parameters import Rules
from tacit.secagg.server import Requests
from tacit.update import EncodedUpdate, Layout, LocalUpdate
from tests.bench import flower_secagg
from tests.bench.flower_secagg import cpu_seconds

N, LENGTH, CLIP = 100, 1_000_000, 10.0
RULES = Rules(max_corrupt=10, max_dropouts=20, c_int=2**16)
BITS = 24  # of the words of that cohort

_GROUP = 10  # clients between two measurements of a floor, and how often it is done then
_WORDS = 1 << 16  # that are packed together
_BLOCK = 1 << 18  # bytes; a keystream that stays in the cache is the fastest

Row = dict[str, Any]


def run() -> list[Row]:
    """A whole round of ours, one client of Flower's, a sample of what its server does."""
    with threadpool_limits(1):
        return _rows()


def _rows() -> list[Row]:
    encoding, encoded = encode(LENGTH)
    attempt = MeasuredAttempt(Federation(N, RULES), [encoded] * N)
    attempt.run()
    bits, threshold = attempt.server.cohort.parameters.bits, attempt.server.cohort.parameters.threshold
    client, server = attempt.client_seconds(), attempt.server.seconds
    mask, unpack = median(attempt.masks), median(attempt.unpacks)
    vector = np.random.default_rng(0).normal(size=LENGTH).astype(np.float32)
    flower_client = median(flower_secagg.client_seconds(N, threshold, vector) for _ in range(3))
    flower_server = flower_secagg.server_seconds(N, threshold, LENGTH, sample=3)
    uploaded, allowed = max(attempt.uploaded()), 1.05 * bits * LENGTH / 8 + 250 * N
    print(
        f"  client {client:.3f} s, floor {N * mask:.3f} s; encoding {encoding:.3f} s; Flower {flower_client:.2f} s"
    )
    print(
        f"  server {server:.3f} s, floor {N * (mask + unpack):.3f} s; Flower {flower_server:.1f} s, by a sample"
    )
    print(
        f"  one vector of {bits} bits unpacked and added in {1e3 * unpack:.2f} ms, one mask in {1e3 * mask:.2f} ms"
    )
    return [
        row("client, n=100 d=1e6, all steps / n masks", client / (N * mask), 2.0),
        row(
            "client, Flower's SecAgg+ / ours, both from the update",
            flower_client / (client + encoding),
            10,
            "higher",
        ),
        row("server, n=100 d=1e6 / n unpack-and-adds and n masks", server / (N * (mask + unpack)), 1.5),
        row("server, Flower's SecAgg+ / ours", flower_server / server, 100, "higher"),
        row("upload of a client / (1.05 b d / 8 + 250 n)", uploaded / allowed, 1.0),
    ]


def row(name: str, ratio: float, bar: float, better: str = "lower") -> Row:
    """One line of the table."""
    ok = ratio <= bar if better == "lower" else ratio >= bar
    return {"name": name, "ratio": ratio, "bar": bar, "better": better, "ok": ok}


def encode(length: int) -> tuple[float, EncodedUpdate]:
    """CPU seconds of encoding one update, weight included, and what comes out: shape (length,)."""
    layout = Layout((("weights", (length - 1,)),))
    delta = np.random.default_rng(0).normal(size=length - 1).astype(np.float32)
    update = LocalUpdate({"weights": delta}, 1.0, {})
    encoder, stream = Encoder(layout, CLIP, RULES.c_int), Stream(bytes(range(32)))
    encoded: list[EncodedUpdate] = []
    spent = median(
        cpu_seconds(lambda: encoded.append(encoder.encode(update, stream.uniform))) for _ in range(5)
    )
    return spent, encoded[0]


# What clients of one process know from each other. A client in its own process would have to do it itself.
_SHARED = (_check_signature, cohort_of)


class Meter:
    """A machine whose calls are timed and whose answers are weighed.

    Args:
        machine: a client's or the server's.
        alone: whether it shall find out everything itself, as in a process of its own.
    """

    def __init__(self, machine: Any, *, alone: bool = False) -> None:
        self.machine, self.alone, self.seconds, self.sent = machine, alone, 0.0, 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.machine, name)
        return self._timed(found) if callable(found) else found

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            # Not at M0, where it would only make the server forget the keys that it has just checked.
            for known in _SHARED if self.alone and method.__name__ != "setup" else ():
                known.cache_clear()
            start = time.process_time()
            result = method(*arguments)
            if isinstance(
                result, Requests
            ):  # each is made when it is looked up, and that is the server's work
                all(len(result[index]) for index in result)
            self.seconds += time.process_time() - start
            parts = result if isinstance(result, tuple) else (result,)
            self.sent += sum(len(part) for part in parts if isinstance(part, bytes))
            return result

        return call


class MeasuredAttempt(Attempt):
    """An attempt that says what each side has spent, and measures the floors while vectors come in.

    Attributes:
        masks: CPU seconds of a mask of d words, made and added.
        unpacks: CPU seconds of adding a packed vector to the sum.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.server, self.clients = Meter(self.server), [Meter(client, alone=True) for client in self.clients]
        self.masks: list[float] = []
        self.unpacks: list[float] = []

    def deliver(self, step: str, requests: Mapping[int, bytes]) -> None:
        """Everybody's answers, then the server's work on them all: no client computes on a server's core."""
        if step == "mask":
            self.masked(requests)
            return
        more = (self.invitation,) if step == "setup" else ()
        asked = list(self._present(step, requests))
        answers = [getattr(self.clients[index], step)(request, *more) for index, request in asked]
        for answer in answers:
            getattr(self.server, STEPS[step][1])(answer)

    def masked(self, requests: Mapping[int, bytes]) -> None:
        """Everybody's vector, then the server's work on them all; the floors of both in between, for 24-bit words."""
        if self.server.cohort.parameters.bits != BITS:
            super().masked(requests)
            return
        total, answers = np.zeros(self.invitation.length, dtype=np.uint32), []
        for index, request in self._present("mask", requests):
            client = self.clients[index]
            assert client.receive(request) is None
            answers.append(client.mask(request, self.encoded[index]))
            if len(answers) % _GROUP == 0:
                self.masks.append(cpu_seconds(lambda: [floor_mask(total) for _ in range(_GROUP)]) / _GROUP)
        for first in range(0, len(answers), _GROUP):
            group = answers[first : first + _GROUP]
            start = time.process_time()
            for _, vector in group:
                floor_unpack(total, vector)
            self.unpacks.append((time.process_time() - start) / len(group))
            for answer, vector in group:
                self.server.collect_masked(answer, vector)

    def client_seconds(self) -> float:
        """CPU seconds of one client, median."""
        return median(client.seconds for client in self.clients)

    def uploaded(self) -> list[int]:
        """Bytes that each client has sent, vector included."""
        return [client.sent for client in self.clients]


_stream = np.empty(_BLOCK, dtype=np.uint8)
_zeros = memoryview(bytes(_BLOCK))


def floor_mask(acc: np.ndarray) -> None:
    """AES-256-CTR of the vector's length and one addition, in blocks; shape (d,), uint32."""
    encryptor = Cipher(algorithms.AES(bytes(range(32))), modes.CTR(bytes(16))).encryptor()
    words = _stream.view("<u4")
    for start in range(0, acc.size, words.size):
        part = acc[start : start + words.size]
        encryptor.update_into(_zeros[: 4 * part.size], _stream.data)
        np.add(part, words[: part.size], out=part)


def floor_unpack(acc: np.ndarray, vector: memoryview | bytes) -> None:
    """A packed vector of 24-bit words unpacked and added, plainly: a block at a time; shape (d,), uint32."""
    packed = np.frombuffer(vector, np.uint8)
    for start in range(0, acc.size, _WORDS):
        part = acc[start : start + _WORDS]
        planes = packed[3 * start : 3 * (start + part.size)]
        part += planes[: 2 * part.size].view("<u2").astype(np.uint32)
        part += planes[2 * part.size :].astype(np.uint32) << np.uint32(16)
