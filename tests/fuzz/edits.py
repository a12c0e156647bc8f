"""Changes of an input that a random one rarely is: what is a list here gets an entry twice, or out of order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

SIZES: Final = (
    1,
    1,
    1,
    2,
    4,
    8,
    8,
    16,
    32,
    33,
    64,
    97,
    146,
    160,
)  # of numbers, hashes, signatures, shares, rows
OFTEN: Final = (1, 1, 2, 16, 128, 1024)


def edited(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The input with one change.

    Args:
        rng: makes the choices.
        data: the input.
        others: inputs of the same target, whose parts may be put in.
    """
    at, size = rng.randrange(len(data) + 1), rng.choice(SIZES)
    part, behind = data[at : at + size], data[at + size : at + 2 * size]
    other = rng.choice(others) if others else b""
    place = rng.randrange(len(other) + 1)
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: data[:at] + rng.randbytes(len(part)) + data[at + size :],
        lambda: data[:at] + bytes(byte ^ 1 << rng.randrange(8) for byte in part[:1]) + data[at + 1 :],
        lambda: data[:at] + bytes([rng.choice((0, 1, 127, 128, 255))]) * len(part) + data[at + size :],
        lambda: data[:at] + data[at + size :],
        lambda: data[:at] + part * rng.choice(OFTEN) + data[at:],
        lambda: data[:at] + part + part + data[at + 2 * size :],  # over what is behind it
        lambda: data[:at] + behind + part + data[at + 2 * size :],
        lambda: data[:at] + other[place : place + size] + data[at + rng.choice((0, size)) :],
    )
    return rng.choice(changes)()
