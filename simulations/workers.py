"""Local training of a cohort by worker processes: for convolutions and whatever else does not stack.

A worker is this program again, with one torch thread: it loads the experiment and trains the clients that it is
handed by the same `LocalTrainer`. The global model is written to shared memory once a round, and changes come back
through it. Each worker has one client in work and one waiting, so none is idle while answers are encoded. What a
client's answer needs beside training, from guard to debit, stays in this process and in the order it has there.

Guarantees:
    The result of a client is that of `LocalTrainer.train`, bit for bit where that has one torch thread too.
    No worker outlives this process, however it ends.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from client.participant import Run
from client.training import Deltas, Job, LocalTrainer
from tacit.privacy.noise import Keys
from tacit.tasks import Records
from tacit.tasks.weights import Arrays

LOG: Final = logging.getLogger(__name__)

PATIENCE: Final = 5.0  # seconds of training after which `auto` starts workers: about what their start costs
_IN_WORK: Final = 2  # clients that a worker has: one in work, one waiting
_OPEN: weakref.WeakSet[Pool] = weakref.WeakSet()


class WorkersTrainer(LocalTrainer):
    """A `LocalTrainer` whose worker processes train the clients of a cohort ahead.

    A client that they could not train is trained here, and meets here what went wrong there.
    """

    text: str
    patience: float
    has_started: bool  # ever
    _pool: Pool | None
    _origin: Arrays

    @classmethod
    def of(cls, run: Run, patience: float) -> WorkersTrainer:
        """The run's trainer with the ability; workers start after `patience` seconds of training."""
        trainer = cls.__new__(cls)
        trainer.__dict__.update(
            run.trainer.__dict__, _pool=None, _origin={}, patience=patience, has_started=False
        )
        trainer.text = run.experiment.to_toml()
        return trainer

    @property
    def engine(self) -> str:
        """See `LocalTrainer`; where workers have trained, how they did."""
        return (self._pool.engine if self._pool else "") or super().engine

    def train_ahead(self, arrays: Arrays, jobs: Sequence[Job], round_number: int, keys: Keys) -> None:
        """Hands these clients to the workers; what nobody asked for of an earlier call is forgotten."""
        if self._pool not in _OPEN:  # there is none, or the last run that had it is over
            self._pool = None
        if self._pool is None and self.patience <= 0 and len(jobs) > 1:
            LOG.info("executor workers: %d processes", num_workers())
            self._pool, self.has_started = Pool(self.text, arrays), True
        if self._pool is not None:
            self._origin = arrays
            self._attempt(lambda pool: pool.start(arrays, jobs, round_number, keys))

    def train(self, arrays: Arrays, job: Job, round_number: int, keys: Keys) -> Deltas:
        """See `LocalTrainer.train`. What was trained ahead from the same arrays is handed over, once."""
        if self._pool in _OPEN and _same(self._origin, arrays):
            delta = self._attempt(lambda pool: pool.take(job.site, round_number))
            if delta is not None:
                return delta
        start = time.perf_counter()
        delta = super().train(arrays, job, round_number, keys)
        self.patience -= time.perf_counter() - start
        return delta

    def forget(self, site: str, round_number: int) -> None:
        """Lets go of what one client has trained ahead, if anything: it will train on something else."""
        if self._pool in _OPEN:
            self._attempt(lambda pool: pool.take(site, round_number))

    def _attempt(self, ask: Any) -> Deltas | None:
        """What a pool answers; a worker that has ended ends the pool, and what is left is done here."""
        assert self._pool is not None
        try:
            answer: Deltas | None = ask(self._pool)
        except (EOFError, OSError) as error:
            LOG.warning(
                "executor serial: a worker has ended (%s)", self._pool.ended() or type(error).__name__
            )
            self._pool.close()
            self._pool, self.patience = None, float("inf")
            return None
        return answer


class _Client(NamedTuple):
    """What a worker is asked for: a client, and the slot for its result."""

    slot: int
    site: str
    features: NDArray[Any]
    targets: NDArray[Any]
    declared_rows: int
    round: int
    keys: Keys

    def __repr__(self) -> str:
        return f"<_Client: {self.site}>"


class Pool:
    """Worker processes, one for each core, and the memory shared with them.

    Args:
        text: the experiment.
        arrays: have the names and shapes of the model's.

    Attributes:
        engine: how the workers' gradients are made; empty until one has answered.
    """

    engine: str = ""

    def __init__(self, text: str, arrays: Arrays) -> None:
        shapes = {name: array.shape for name, array in arrays.items()}
        size = max(4, sum(4 * array.size for array in arrays.values()))
        self._free = list(range(_IN_WORK * num_workers()))
        self._memory = SharedMemory(create=True, size=size * (1 + len(self._free)))
        self._model, *self._slots = (
            _views(self._memory, i * size, shapes) for i in range(1 + len(self._free))
        )
        self._waiting: deque[tuple[Job, int, Keys]] = deque()
        self._due: set[tuple[str, int]] = set()
        self._results: dict[tuple[str, int], Deltas] = {}
        start: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
        if os.name == "posix":  # the server of forks loads torch once for all workers
            start.set_forkserver_preload(["client.participant", "client.choice"])
        self._workers: dict[Connection, Any] = {}
        self._out: dict[Connection, dict[int, tuple[str, int]]] = {}
        _OPEN.add(self)
        for _ in range(num_workers()):
            own, other = start.Pipe()
            arguments = (other, text, self._memory.name, size, shapes, dict(os.environ))
            process = start.Process(target=work, args=arguments, daemon=True, name="tacit-worker")
            process.start()
            other.close()
            self._workers[own], self._out[own] = process, {}

    def start(self, arrays: Arrays, jobs: Sequence[Job], round_number: int, keys: Keys) -> None:
        """Takes up a round; returns at once.

        Raises:
            EOFError, OSError: a worker has ended.
        """
        self._waiting.clear()
        while any(
            self._out.values()
        ):  # of a round that nobody waits for; they read the model that is to change
            self._receive()
        self._results.clear()
        for name, place in self._model.items():
            place[...] = arrays[name]
        self._waiting.extend((job, round_number, keys) for job in jobs)
        self._due = {(job.site, round_number) for job in jobs}
        self._feed()

    def take(self, site: str, round_number: int) -> Deltas | None:
        """A client's change, as soon as it is there; None if the client was not handed over, or failed.

        Raises:
            EOFError, OSError: a worker has ended.
        """
        key = site, round_number
        while key in self._due:
            self._receive()
        return self._results.pop(key, None)

    def _feed(self) -> None:
        """Hands out clients, to whoever has the fewest."""
        while self._waiting and self._free:
            connection = min(self._out, key=lambda c: len(self._out[c]))
            job, number, keys = self._waiting.popleft()
            slot = self._free.pop()
            self._out[connection][slot] = job.site, number
            records = job.records.features.cpu().numpy(), job.records.targets.cpu().numpy()
            connection.send(_Client(slot, job.site, *records, job.declared_rows, number, keys))

    def _receive(self) -> None:
        """Takes at least one answer, and hands out the next clients."""
        for connection in wait(list(self._workers)):
            assert isinstance(connection, Connection)
            slot, engine = connection.recv()
            key = self._out[connection].pop(slot)
            self._due.discard(key)
            if engine:
                self.engine = engine
                self._results[key] = {name: place.copy() for name, place in self._slots[slot].items()}
            self._free.append(slot)
        self._feed()

    def ended(self) -> str:
        """How those workers ended that have."""
        for process in self._workers.values():
            process.join(0.5)
        return ", ".join(f"exit code {p.exitcode}" for p in self._workers.values() if p.exitcode is not None)

    def close(self) -> None:
        """Ends the workers."""
        for connection, process in self._workers.items():
            process.kill()
            process.join()
            connection.close()
        self._workers.clear()
        self._model, self._slots = {}, []  # or the memory cannot be closed
        self._memory.close()
        self._memory.unlink()
        _OPEN.discard(self)


def close_pools() -> None:
    """Ends all workers of this process."""
    for pool in list(_OPEN):
        pool.close()


def no_workers(run: Run) -> str:
    """Why worker processes are of no use to a run; empty if they may be."""
    if run.trainer.device.type != "cpu":
        return f"the device is {run.trainer.device.type}, which processes would have to share"
    return "" if num_workers() > 1 else "there is one core"


def num_workers() -> int:
    """One for each core that this process may use; a sweep, which runs several of them, says how many (TACIT_CORES)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, int(os.environ.get("TACIT_CORES", cores)))


def work(
    connection: Connection,
    text: str,
    memory: str,
    size: int,
    shapes: Mapping[str, tuple[int, ...]],
    environment: Mapping[str, str],
) -> None:
    """What a worker does: trains one client after the other, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the whole terminal: the parent decides
    asked: SimpleQueue[_Client] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, asked), daemon=True).start()
    os.environ.update(environment)
    torch.set_num_threads(1)
    shared = SharedMemory(memory)
    model = _views(shared, 0, shapes)
    trainer = Run(text).trainer
    while True:
        client = asked.get()
        records = Records(torch.from_numpy(client.features), torch.from_numpy(client.targets))
        try:
            job = Job(client.site, records, client.declared_rows)
            delta = trainer.train(model, job, client.round, client.keys)
            for name, place in _views(shared, size * (1 + client.slot), shapes).items():
                place[...] = delta[name]
        except Exception:  # the parent trains this client, and meets the same where it can be told
            connection.send((client.slot, ""))
        else:
            connection.send((client.slot, trainer.engine))


def _listen(connection: Connection, asked: SimpleQueue[_Client]) -> None:
    """Reads ahead; ends the process, in the middle of a client too, when the other end is gone."""
    try:
        while True:
            asked.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _views(memory: SharedMemory, offset: int, shapes: Mapping[str, tuple[int, ...]]) -> Deltas:
    """Named arrays, one after the other in shared memory."""
    views: Deltas = {}
    for name, shape in shapes.items():
        views[name] = np.ndarray(shape, np.float32, memory.buf, offset)
        offset += views[name].nbytes
    return views


def _same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
