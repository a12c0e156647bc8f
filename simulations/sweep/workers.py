"""Runs cells in processes, one torch thread each.

Guarantees:
    A cell that fails, or whose process dies, ends no other.
    When it returns or raises, no process that it has started is left.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

from tacit.errors import TacitError

SECONDS_TO_END: Final = 5.0  # of a process that was asked to


@dataclass(frozen=True)
class Job:
    """One cell for one process.

    Attributes:
        number: of the cell, as the caller counts.
        experiment: as TOML.
        out: the run's folder.
        resume: whether it goes on with what is there.
        baselines: folder of shared baselines.
    """

    number: int
    experiment: str
    out: Path
    resume: bool
    baselines: Path


@dataclass(frozen=True)
class Done:
    """What became of a job: why it failed, "" if it did not, and how long it took."""

    number: int
    reason: str
    seconds: float


class Worker:
    """A process and the pipe to it; started anew when it dies.

    Args:
        log: takes what the process prints.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: Any = None
        self.job: Job | None = None
        self._started = 0.0
        self.pipe: Connection

    def begin(self, job: Job) -> None:
        """Sends a job to the process, which is started where there is none."""
        if self._process is None or not self._process.is_alive():
            spawn = multiprocessing.get_context("spawn")  # a fork would take over threads and locks
            self.pipe, theirs = spawn.Pipe()
            self._process = spawn.Process(target=_work, args=(theirs, self._log))
            self._process.start()
            theirs.close()
        self.job, self._started = job, time.monotonic()
        with suppress(OSError):  # it has just died: `finish` says so
            self.pipe.send(job)

    def finish(self) -> Done:
        """What the process has to say about its job; that it has died, if so."""
        assert self.job is not None
        number, self.job = self.job.number, None
        try:
            reason = str(self.pipe.recv())
        except (EOFError, OSError):
            self._process.join()
            reason = f"its process ended with code {self._process.exitcode}; see {self._log.name}"
            self._process = None
        return Done(number, reason, time.monotonic() - self._started)

    def end(self) -> None:
        """Ends the process, whatever it is doing: what a run has completed is on the disk."""
        if self._process is None:
            return
        self.pipe.close()
        self._process.terminate()
        self._process.join(SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def run_jobs(
    jobs: Iterable[Job], num_workers: int, log: Path, *, on_start: Callable[[Job], None] = lambda job: None
) -> Iterator[Done]:
    """Runs all jobs, some at a time, and yields each as it is done.

    Args:
        jobs: in the order in which they are begun; the next one is asked for when a process is free and all that is
            done has been yielded, so that it may follow from that.
        num_workers: processes.
        log: what they print is added to this file.
        on_start: is told of each job before it is sent.
    """
    waiting = iter(jobs)
    workers = [Worker(log) for _ in range(num_workers)]
    cores = max(1, (os.cpu_count() or 1) // max(1, len(workers)))
    limits = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TACIT_CORES": str(cores)}
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)  # read by a process as it starts
    try:
        while True:
            for worker in workers:
                if worker.job is None and (job := next(waiting, None)) is not None:
                    on_start(job)
                    worker.begin(job)
            if not any(worker.job for worker in workers):
                return
            ready = wait([worker.pipe for worker in workers if worker.job])
            for worker in workers:
                if worker.job and worker.pipe in ready:
                    yield worker.finish()
    finally:
        for worker in workers:
            worker.end()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _work(pipe: Connection, log: Path) -> None:
    """A process's life: jobs from the pipe until it is closed."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the sweep ends this process
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        reason = _run(job)
        try:
            pipe.send(reason)
        except OSError:  # whoever asked is gone
            return


def _run(job: Job) -> str:
    """Runs one cell; why it failed, or ""."""
    from simulations.run import simulate
    from tacit import config

    print(f"--- {job.out.name}", file=sys.stderr, flush=True)
    experiment = config.loads(job.experiment, source=job.out.name)
    try:
        if job.resume:
            try:
                simulate(experiment, job.out, resume=True, baselines=job.baselines)
                return ""
            except TacitError as error:  # half of a round, another version: from the beginning then
                print(f"not gone on with: {error}", file=sys.stderr, flush=True)
        simulate(experiment, job.out, baselines=job.baselines)
    except TacitError as error:
        return str(error)
    except Exception as error:  # the edge of a cell: a task of one's own may raise anything
        traceback.print_exc()
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""
