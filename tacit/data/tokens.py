"""Turns text into whole numbers of a fixed length, by the declared schema alone: no vocabulary is learnt.

0 fills up what is shorter than the declared length. A byte b is b + 1. A word is one of the numbers from 1 to
vocabulary - 1, by its hash (Weinberger et al. 2009), so that two words may share a number.

Guarantees:
    The tokens of a text follow from it and the schema alone: no other text changes them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tacit.data.schema import TextColumn

PADDING: Final = 0
WORD: Final = re.compile(r"\w+")


def tokenised(texts: Sequence[str | None], column: TextColumn) -> NDArray[np.int64]:
    """Tokens of shape (texts, column.length); all 0 for an empty text.

    Args:
        texts: None where the cell is empty.
        column: which tokens, and how many of a text.
    """
    tokens = np.full((len(texts), column.length), PADDING, dtype=np.int64)
    of = _bytes if column.tokens == "bytes" else _words
    for row, text in zip(tokens, texts, strict=True):
        found = of(text or "", column)[: column.length]
        row[: len(found)] = found
    return tokens


def _bytes(text: str, column: TextColumn) -> list[int]:
    return [byte + 1 for byte in text[: column.length].encode()]


def _words(text: str, column: TextColumn) -> list[int]:
    return [_number(word, column.num_tokens) for word in WORD.findall(text.lower())]


@lru_cache(maxsize=1 << 16)
def _number(word: str, num_tokens: int) -> int:
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (num_tokens - 1) + 1
