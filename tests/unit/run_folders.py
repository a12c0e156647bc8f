"""A server's folder with some rounds in it, for the tests of what may happen to it."""

from pathlib import Path
from typing import Any

import numpy as np

from server.state import RunState
from strategies.rounds import Progress

CONFIG = "name = 'x'"


def model(value: float) -> dict[str, np.ndarray]:
    return {"z.weight": np.full((2, 3), value, dtype=np.float32), "a.bias": np.array(value, dtype=np.float32)}


def progress(number: int, best: int = -1) -> Progress:
    return Progress(number, model(number), {"m\x1fdict\x1f000000\x1fa": np.arange(3.0)}, best, 0.5, 1)


def record(number: int) -> dict[str, Any]:
    return {"round": number, "cohort": ["a", "b"], "epsilon": 0.1 * number}


def filled(folder: Path, rounds: int = 4, keep: int = 0, best: int = -1) -> RunState:
    state = RunState(folder, CONFIG, keep)
    state.save(progress(0), None)
    for number in range(1, rounds + 1):
        state.save(progress(number, best), record(number))
    return state


def reopened(folder: Path, keep: int = 0) -> RunState:
    return RunState(folder, CONFIG, keep)


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("round-")) for path in (folder / "checkpoints").glob("round-*"))


def at(folder: Path, number: int) -> Path:
    return folder / "checkpoints" / f"round-{number:06d}"
