"""What a private step costs: book-keeping and Opacus' hooks against the plain SGD step of the same network.

A step is forward and backward pass, clipping, noise and update, on one thread. Its seconds are those of the thread,
not of the clock: what else the machine does meanwhile falls on all three alike, but not at the same time.
"""

from __future__ import annotations

import time
from statistics import median

import torch

from client.choice import private_gradients
from client.noised import STEPS_AHEAD
from client.private_gradients import PrivateGradients
from client.training import PlainGradients
from tacit.privacy.noise import Stream
from tests.bench.networks import NETWORKS, batch

TURNS = {"MLP": 60, "CNN": 15, "Transformer": 15}
STEPS = {"MLP": 2 * STEPS_AHEAD, "CNN": 1, "Transformer": 1}  # of a turn: whole draws of noise
BARS = {
    ("MLP", 32): 1.5, ("MLP", 256): 1.5,
    ("CNN", 32): None, ("CNN", 256): 1.6,
    ("Transformer", 32): None, ("Transformer", 256): 1.7,
}  # fmt: skip


class _Task:
    """As much of a task as a gradient needs."""

    def loss(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")


def run() -> list[dict]:
    """For each network and batch size one row against the plain step, and one against Opacus."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for name, rows in BARS for row in _rows(name, rows)]
    finally:
        torch.set_num_threads(threads)


def _rows(name: str, batch_size: int) -> list[dict]:
    plain, book, opacus = _step_seconds(name, batch_size)
    of = f"{name}, batch {batch_size}"
    print(f"  {of}: plain 1, book-keeping {book / plain:.2f}, Opacus {opacus / plain:.2f}", flush=True)
    return [
        _row(f"DP step by book-keeping / plain step, {of}", book / plain, BARS[name, batch_size]),
        _row(f"DP step by book-keeping / by Opacus' hooks, {of}", book / opacus, 1.0),
    ]


def _step_seconds(name: str, batch_size: int) -> list[float]:
    """Median seconds of a step, the three in turns."""
    records = batch(name, batch_size)
    makers = (
        lambda m: PlainGradients(m, _Task()),
        lambda m: private_gradients(m, _Task(), 1.0, 1.0),
        lambda m: PrivateGradients(m, _Task(), 1.0, 1.0),
    )
    steps = []
    for make in makers:
        model = NETWORKS[name]()
        optimizer, noise = torch.optim.SGD(model.parameters(), lr=0.1), Stream(bytes(32))
        steps.append((make(model), optimizer, noise, []))
    for _ in range(TURNS[name] + 2):
        for gradients, optimizer, noise, seconds in steps:  # one stream for all steps of a round
            start = time.thread_time()
            for _ in range(STEPS[name]):
                gradients.fill(records, float(batch_size), noise)
                optimizer.step()
            seconds.append((time.thread_time() - start) / STEPS[name])
    return [median(seconds[2:]) for *_, seconds in steps]


def _row(name: str, ratio: float, bar: float | None) -> dict:
    return {"name": name, "ratio": ratio, "bar": bar, "better": "lower", "ok": bar is None or ratio <= bar}
