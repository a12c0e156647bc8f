"""How a transcript is written into a vector: hexadecimal, large or repeated things by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

LARGE = 700  # bytes


def shown(value: Any) -> Any:
    """Bytes as text; large ones as their SHA-256."""
    if isinstance(value, bytes):
        return value.hex() if len(value) <= LARGE else "sha256:" + hashlib.sha256(value).hexdigest()
    return value


def transcript(sent: dict[str, Any], show: Collection[int]) -> dict[str, Any]:
    """What the clients of `show` send and are sent, and one hash over what all are."""
    out: dict[str, Any] = {}
    for name in sorted(sent):
        value = sent[name]
        if not isinstance(value, dict):
            out[name] = shown(value)
            continue
        everything = b"".join(value[u] for u in sorted(value))
        out[name] = {str(u): shown(value[u]) for u in sorted(value) if u in show}
        out[name]["all"] = hashlib.sha256(everything).hexdigest()
        if len({*value.values()}) == 1:
            out[name] = shown(value[min(value)])
    return out
