"""Gaussian noise of many coordinates, or of many streams, at once.

A coordinate is the sum of four Box-Muller draws (1958), halved, and is made in a block of up to `BLOCK` of them. A
block takes words of its stream in the shape (2, 4, half): the first half makes radii, the second angles; cosines
are for the first `half` coordinates and sines for the others, so that the four summands of one share no uniform.

Logarithm, cosine and sine are torch's, in float64: they use all of torch's threads, and one thread takes a third of
NumPy's time for them where a processor has no AVX-512. This module is loaded when noise is first drawn, because an
idle client has no torch.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tacit.privacy.noise import Stream

BLOCK: Final = 1 << 14  # coordinates: their words stay in the cache

_Part = tuple[Stream, NDArray[np.float64]]  # where the next values of a stream go


def gaussians(streams: Sequence[Stream], n: int, std: float) -> NDArray[np.float64]:
    """The next `n` normals of each stream: row i is what `streams[i].gaussian(n, std)` returns.

    Args:
        streams: each one once; one several times, for as many successive draws, where `n` is below `BLOCK`.
        n: length of a row.
        std: standard deviation; 0 gives zeros and uses nothing of the streams.

    Returns:
        Shape (streams, n); finite.
    """
    if not 0 <= std < math.inf:
        raise ValueError(f"a standard deviation is finite and not negative, not {std}")
    rows = np.zeros((len(streams), n))
    if std > 0:
        whole = n - n % BLOCK
        pairs = list(zip(streams, rows, strict=True))
        _fill([(s, row[i : i + BLOCK]) for s, row in pairs for i in range(0, whole, BLOCK)], std)
        _fill([(s, row[whole:]) for s, row in pairs if whole < n], std)
    return rows


def _fill(parts: Sequence[_Part], std: float) -> None:
    """Parts of one length, as many at once as keep each of torch's threads busy with a whole block."""
    size = len(parts[0][1]) if parts else 1
    group = max(1, torch.get_num_threads() * BLOCK // size)
    for start in range(0, len(parts), group):
        some = parts[start : start + group]
        _blocks(len(some), (size + 1) // 2, threading.get_ident()).fill(some, std / 2)


class _Blocks:
    """Blocks of one size, made together in arrays that are kept: a small model's noise is mostly calls."""

    def __init__(self, num_blocks: int, half: int) -> None:
        self.words = np.empty((num_blocks, 2, 4, half), np.uint64)
        self.uniforms = np.empty((2, num_blocks, 4, half))
        self.radii, self.angles = self.uniforms
        self.draws = self.words.view(np.float64).reshape(
            self.uniforms.shape
        )  # written when the words were read
        self.sums = np.empty((2, num_blocks, half))
        self.log, self.angle = torch.from_numpy(self.uniforms)
        self.cos, self.sin = torch.from_numpy(self.draws)

    def fill(self, parts: Sequence[_Part], scale: float) -> None:
        """Writes the next values of each stream, times `scale`."""
        for (stream, _), words in zip(parts, self.words, strict=True):
            stream.fill(words)
        self._add_up()
        half = self.sums.shape[2]
        for (_, out), cosines, sines in zip(parts, *self.sums, strict=True):
            np.multiply(cosines, scale, out=out[:half])
            np.multiply(sines[: len(out) - half], scale, out=out[half:])

    def _add_up(self) -> None:
        """The sums of four draws from the words."""
        self.words >>= np.uint64(11)
        np.copyto(self.uniforms, self.words.swapaxes(0, 1))
        self.radii *= -(2.0**-53)
        self.radii += 1.0  # in (0, 1]: the logarithm is finite
        torch.log(self.log, out=self.log)
        self.radii *= -2.0
        np.sqrt(self.radii, out=self.radii)
        self.angles *= 2 * math.pi * 2.0**-53
        torch.cos(self.angle, out=self.cos)
        torch.sin(self.angle, out=self.sin)
        self.draws *= self.radii
        np.add.reduce(self.draws, axis=2, out=self.sums)


@lru_cache(maxsize=2)
def _blocks(num_blocks: int, half: int, thread: int) -> _Blocks:
    """The arrays of this thread."""
    return _Blocks(num_blocks, half)
