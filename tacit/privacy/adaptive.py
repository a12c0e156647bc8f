"""A clip norm that follows a quantile of the updates' norms (Andrew, Thakkar, McMahan, Ramaswamy 2021).

Each client adds a bit to its vector: whether its update was not longer than the clip norm C. The sum of the bits has
the noise of all other coordinates and costs nothing beyond it, so that C is a function of what was released already.
"""

from __future__ import annotations

import math

from tacit.config import ClientPrivacy
from tacit.errors import Refused


def next_clip(clip: float, below: float, settings: ClientPrivacy) -> float:
    """C exp(-rate (share below C - target quantile)), within the range (Algorithm 1, the geometric update).

    Args:
        clip: the norm in force.
        below: the share of the updates that were not longer, with noise; cut to [0, 1] first.
        settings: target, rate and range.
    """
    share = min(max(below, 0.0), 1.0)
    moved = clip * math.exp(-settings.clip_learning_rate * (share - settings.target_quantile))
    smallest, largest = settings.clip_range
    return min(max(moved, smallest), largest)


def clip_text(clip: float) -> str:
    """The norm as the text that travels and that a round is bound to: the shortest that reads as the same number."""
    return repr(clip)


def clip_value(text: str) -> float:
    """The reverse of `clip_text`.

    Raises:
        Refused: "clip", not the text of a finite number above 0 in that spelling.
    """
    try:
        value = float(text)
    except ValueError:
        raise Refused("clip", "not a number") from None
    if not 0 < value < math.inf or clip_text(value) != text:
        raise Refused("clip", f"{text[:40]!r} is no clip norm in its only spelling")
    return value
