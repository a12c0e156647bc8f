"""What torch's own generators draw in training: dropout, a code, the row that is made up beside a record, views.

They draw for a record by its place in the batch, and not by what it is. One record more changes which draws the others
get, but not how these are distributed; and whichever they are, it moves a sum by no more than it is clipped to. So the
promise of the noise holds for the whole, which is a mixture of such mechanisms: divergences are jointly convex. That
needs draws that nobody can try out. A seed has 64 bits, of which torch's generator of the CPU, MT19937, takes 32.

Guarantees:
    On the CPU what is drawn follows from a whole key, and not from so few of its bits that all can be tried.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch

_WORDS: Final = 624  # of MT19937's state (Matsumoto and Nishimura 1998)
_PLACE: Final = (
    24  # where they begin in torch's: behind the seed, words left, whether it is seeded, and the next word
)


def generator_on(device: torch.device, key: bytes) -> torch.Generator:
    """A generator of its own."""
    generator = torch.Generator(device)
    _begin(generator, key)
    return generator


@contextmanager
def drawn_from(key: bytes, device: torch.device) -> Iterator[None]:
    """Has torch's generators draw from a key, for what a model draws itself, and puts the caller's state back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _begin(torch.default_generator, key)  # torch.manual_seed asks every accelerator, for 2 ms
        if device.type == "cuda":
            torch.cuda.manual_seed(_seed(key))
        yield


def _begin(generator: torch.Generator, key: bytes) -> None:
    generator.manual_seed(_seed(key))
    if generator.device.type == "cpu":
        words = np.frombuffer(hashlib.shake_256(key).digest(4 * _WORDS), dtype="<u4").astype("<u8")
        state = generator.get_state()
        state[_PLACE : _PLACE + 8 * _WORDS] = torch.from_numpy(words.view(np.uint8))
        generator.set_state(state)


def _seed(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")
