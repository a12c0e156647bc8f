"""The vectors as files: cases with their answers by the product."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.vectors import cases, lies
from tests.vectors.product import KINDS
from tests.vectors.show import transcript

FOLDER = Path(__file__).parent
SHOW = {3: [0, 1, 2], 5: [0, 1, 4], 201: [7, 100]}  # whose messages are written out; all are hashed
Json = dict[str, Any]
Given = dict[str, tuple[str, Json]]


def files() -> dict[str, Given]:
    """File -> name -> kind, given."""
    return {
        "parts.json": cases.primitives() | cases.cohorts_and_rings() | cases.rosters(),
        "attempts.json": {name: ("attempt", {"attempt": a}) for name, a in cases.ATTEMPTS.items()},
        "refused.json": {name: case[:2] for name, case in refused().items()},
    }


def refused() -> dict[str, tuple[str, Json, Json]]:
    """Name -> kind, given and what has to come out; nothing for a complaint."""
    return lies.alone() | lies.in_attempts()


def answered(kind: str, given: Json, sides: Json = KINDS) -> Json:
    """What an implementation, the product if no other is named, makes of a case."""
    answer: Json = sides[kind](given)
    return transcript(answer, SHOW[given["attempt"]["n"]]) if kind == "attempt" else answer


def written(given: Given) -> str:
    """A file: one case to a line, so that a difference is seen."""
    lines = [
        {"name": name, "kind": kind, "given": case, "expected": answered(kind, case)}
        for name, (kind, case) in given.items()
    ]
    text = ",\n".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in lines)
    return f"[\n{text}\n]\n"


def read() -> dict[str, list[Json]]:
    """File -> its cases."""
    return {path.name: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))}
