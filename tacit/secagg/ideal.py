"""The ideal functionality: what the protocol must compute, without any cryptography."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tacit.update import Aggregate, EncodedUpdate


def ideal_sum(encoded: Sequence[EncodedUpdate]) -> Aggregate:
    """The integer sum of the vectors, each of shape (d,). The caller sees all of them: simulation only."""
    if not encoded:
        raise ValueError("a sum of at least one vector")
    total = np.zeros_like(encoded[0].values)
    for update in encoded:
        total += update.values
    return Aggregate(total, len(encoded))
