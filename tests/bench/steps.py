"""What a private step costs: book-keeping and Opacus' hooks against the plain SGD step of the same MLP 20-64-2."""

from __future__ import annotations

import time
from statistics import median

import torch

from client.bookkeeping import BookKeeping
from client.private_gradients import PrivateGradients
from client.training import PlainGradients
from tacit.config import Model
from tacit.privacy.noise import Stream
from tacit.tasks import Records
from tacit.tasks.models import build

REPEATS = 300
BAR = 2.0  # of the plain step


class _Task:
    """As much of a task as a gradient needs."""

    def loss(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")


def run() -> list[dict]:
    """One row per batch size against the plain step, and one against Opacus."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for rows in (32, 256) for row in _rows(rows)]
    finally:
        torch.set_num_threads(threads)


def _rows(batch_size: int) -> list[dict]:
    plain, book, opacus = _step_seconds(batch_size)
    print(f"  batch {batch_size}: plain 1, book-keeping {book / plain:.2f}, Opacus {opacus / plain:.2f}")
    return [
        _row(f"DP step by book-keeping / plain step, batch {batch_size}", book / plain, BAR),
        _row(f"DP step by book-keeping / by Opacus' hooks, batch {batch_size}", book / opacus, 1.0),
    ]


def _step_seconds(batch_size: int) -> list[float]:
    """Median seconds of a step, the three in turns, noise and update included."""
    batch = Records(torch.randn(batch_size, 20), torch.randint(0, 2, (batch_size,)))
    makers = (
        lambda m: PlainGradients(m, _Task()),
        lambda m: BookKeeping(m, _Task(), 1.0, 1.0),
        lambda m: PrivateGradients(m, _Task(), 1.0, 1.0),
    )
    steps = []
    for make in makers:
        model = build(Model(hidden=(64,)), 20, 2)
        steps.append((make(model), torch.optim.SGD(model.parameters(), lr=0.1), []))
    for number in range(REPEATS):
        for gradients, optimizer, seconds in steps:
            start = time.perf_counter()
            gradients.fill(batch, float(batch_size), Stream(number.to_bytes(32, "big")))
            optimizer.step()
            seconds.append(time.perf_counter() - start)
    return [median(seconds) for _, _, seconds in steps]


def _row(name: str, ratio: float, bar: float) -> dict:
    return {"name": name, "ratio": ratio, "bar": bar, "better": "lower", "ok": ratio <= bar}
