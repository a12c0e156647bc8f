"""What a pair mask costs, beside the cipher and the addition that it is made of."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tacit.secagg.prg import add_mask

_LENGTH = 1_000_000
_REPEATS = 41
_BAR = 1.5


def run() -> list[dict[str, Any]]:
    """One mask of a million words, against AES-256-CTR of that length and one addition, taken in turns."""
    seed = bytes(range(32))
    acc = np.zeros(_LENGTH, dtype=np.uint32)
    zeros, stream = bytes(4 * _LENGTH), np.empty(4 * _LENGTH, dtype=np.uint8)

    def mask() -> None:
        add_mask(acc, seed, 1)

    def floor() -> None:
        encryptor = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        encryptor.update_into(zeros, stream.data)
        np.add(acc, stream.view("<u4"), out=acc)

    times: dict[Any, list[float]] = {mask: [], floor: []}
    for _ in range(_REPEATS):
        for work, seconds in times.items():
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
    ratio = median(times[mask]) / median(times[floor])
    return [
        {
            "name": "pair mask of 1e6 words / AES-256-CTR and one addition",
            "ratio": ratio,
            "bar": _BAR,
            "better": "lower",
            "ok": ratio <= _BAR,
        }
    ]
