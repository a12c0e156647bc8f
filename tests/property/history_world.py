"""A server and its sites in one process, all of whose moves a history decides: real apps and files, no SuperLink.

A process is killed at a moment of the history, or at one of the system calls by which it changes a file; what it held
in memory is gone then, and what it has written stays. The server runs in a thread that goes on only when it is told
to, and its clock is the history's.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from history_link import NUM_SITES, HeldGrid, HeldWire, Idle, Link

import client.participant
from client.agent import Agent, Pace
from client.flower_wire import Lost, Over
from client.follower import Follower
from client.participant import Participant, run_of
from client.sessions import FolderSessions
from client.site import Site
from server.app import app as server_app
from simulations.local_grid import SERVER_NODE
from simulations.run import one_thread, prepare
from strategies import exchange, secure_grid
from tacit import config
from tacit.config import Experiment
from tacit.errors import TacitError
from tacit.secagg.server import AttemptFailed
from tacit.tasks import Records
from tacit.tasks.weights import initial_arrays

logging.getLogger("flwr").setLevel(logging.ERROR)

ROUNDS, DEADLINE = 6, 8.0
FIRST_NODE = SERVER_NODE + 1
EXPERIMENT = f"""
name = "history"
[partition]
num_clients = {NUM_SITES}
[task.model]
name = "logistic"
[training]
rounds = {ROUNDS}
local_steps = 1
sampling_rate = 0.5
learning_rate = 0.5
[secure_aggregation]
max_dropouts = 1
deadline_seconds = {DEADLINE}
[checkpoints]
keep = 0
[simulation]
baselines = false
"""
PRIVATE = ("privacy.record={epsilon=20.0, delta=1e-5, reserve=3.0}", "insecure_seeded_noise=true")


class Killed(BaseException):
    """`kill -9`: nothing of ours may catch it."""


class Fuse:
    """Kills whoever makes the n-th call from now on that changes a file: before it, or in the middle of a write."""

    def __init__(self) -> None:
        self.left = 0

    def tick(self) -> bool:
        """Whether this call is the one."""
        if self.left:
            self.left -= 1
            return not self.left
        return False


class Prepared:
    """Sites and keys as they are before anything has happened; copied for each history."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        prepared = prepare(config.loads(EXPERIMENT, overrides=overrides), folder)
        self.folder, self.experiment = prepared.folder, prepared.experiment
        self.text = self.experiment.to_toml()
        run = run_of(self.text)  # the model and the plan: the same for every history
        self.records: list[dict[str, Records]] = [{} for _ in range(NUM_SITES)]
        private = self.experiment.privacy.record is not None
        self.initial = initial_arrays(run.task, private=private, seed=self.experiment.seed)


class Remembers:
    """In place of a cache that an agent empties after some runs: here all agents share it, and only a kill forgets."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def cache_clear(self) -> None:
        pass


class Silence:
    """A screen that nobody looks at."""

    def line(self, text: str) -> None:
        pass

    def now(self, text: str) -> None:
        pass


class Member:
    """A site and the agent that takes part for it, if one lives."""

    def __init__(self, world: World, number: int) -> None:
        self._world, self.folder, self.node = world, world.sites / str(number), FIRST_NODE + number
        self.fuse = Fuse()
        self.num_kills = 0
        self.participant: Participant | None = None
        self.records = world.records[number]
        self._begin()

    def _begin(self) -> None:
        self.wire = HeldWire(self._world.link, self.node, self._world.text)
        follower = Follower(Silence())
        self._agent = Agent(self.folder, self.wire, lambda digest: None, Pace(), follower)  # type: ignore[arg-type]

    def work(self) -> bool:
        """Answers all that waits for it, until the connection is lost or it is killed; False if nothing waited."""
        began = len(self._world.link.answered)
        try:
            with self._world.acting(self.fuse):
                self._agent._serve()
        except (Idle, Lost, Over):
            pass
        except Killed:
            self.die()
        return len(self._world.link.answered) > began

    def die(self) -> None:
        """`kill -9`, and started again."""
        self.fuse.left, self.num_kills = 0, self.num_kills + 1
        self.participant = None
        self._begin()


class Clock:
    """In place of `time` for the server: its sleeping hands over to the history."""

    def __init__(self, sleep: Callable[[], None]) -> None:
        self.now, self._sleep = 0.0, sleep

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._sleep()


class ServerThread:
    """The server's process, which goes on only within `work`."""

    def __init__(self, world: World) -> None:
        self._world, self.fuse, self.num_kills = world, Fuse(), 0
        self._turn, self._parked = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._doomed = False
        self.failed: list[str] = []
        self.error: BaseException | None = None

    @property
    def lives(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        assert self._thread is None
        self._doomed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.work()

    def work(self) -> None:
        """Until it waits again, or has ended."""
        if self._thread is None:
            return
        thread = self._thread
        with self._world.acting(self.fuse):
            self._turn.release()
            self._parked.acquire()
        if self._thread is None:
            thread.join()
        if self.error is not None:
            raise self.error

    def die(self) -> None:
        """`kill -9`."""
        if self._thread is not None:
            self._doomed = True
            self.work()

    def park(self) -> None:
        """Called in the thread: hands over to the history, and waits for its turn."""
        self._parked.release()
        self._turn.acquire()
        if self._doomed:
            raise Killed

    def _run(self) -> None:
        self._turn.acquire()
        try:
            grid = HeldGrid(self._world.link)
            server_app(
                grid,
                Context(
                    self._world.link.run, SERVER_NODE, {}, RecordDict(), {"experiment": self._world.text}
                ),
            )
        except Killed:
            self.num_kills += 1
            self.fuse.left = 0
        except TacitError as error:
            self.failed.append(str(error))
        except BaseException as error:  # the test's, or a fault of ours: told in the history's thread
            self.error = error
        finally:
            self._thread = None
            self._parked.release()


class World:
    """One history's files and processes. For the length of a `with`."""

    def __init__(self, prepared: Prepared) -> None:
        self.experiment: Experiment = prepared.experiment
        self.text, self.initial, self.records = prepared.text, prepared.initial, prepared.records
        memory = Path("/dev/shm")
        self._folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
        self.sites, self.state = self._folder / "sites", self._folder / "state"
        shutil.copytree(prepared.folder, self.sites)
        self.link, self._acting = Link(), Fuse()
        self.server = ServerThread(self)
        self.clock = Clock(self.server.park)
        self.vectors: dict[tuple[int, int, int], Any] = {}  # by site, round and attempt
        self.aborted: set[tuple[int, int]] = set()  # rounds and attempts
        self.patch, self._stack = pytest.MonkeyPatch(), ExitStack()

    def __enter__(self) -> World:
        nodes = {site.label: FIRST_NODE + i for i, site in enumerate(self.experiment.federation.sites)}
        (self._folder / "nodes.json").write_text(json.dumps(nodes))
        for name, path in (("STATE", "state"), ("FEDERATION", "sites"), ("NODES", "nodes.json")):
            self.patch.setenv(f"TACIT_{name}", str(self._folder / path))
        self.patch.setattr(exchange, "time", self.clock)
        self.patch.setattr(client.participant, "participant_of", Remembers(self._participant_of))
        self.patch.setattr(client.participant, "run_of", Remembers(run_of))
        self._stack.enter_context(one_thread())
        self._watch_calls()
        self._watch_sums()
        self.members = [Member(self, i) for i in range(NUM_SITES)]
        return self

    def __exit__(self, *_: object) -> None:
        self.server.die()
        self.patch.undo()
        self._stack.close()
        shutil.rmtree(self._folder)

    @contextmanager
    def acting(self, fuse: Fuse) -> Iterator[None]:
        """Whose calls are counted."""
        before, self._acting = self._acting, fuse
        try:
            yield
        finally:
            self._acting = before

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Nobody acts within it."""
        with self.acting(Fuse()):
            yield

    def _participant_of(self, text: str, folder: Path, keep_in_memory: bool) -> Participant:
        member = self.members[int(folder.name)]
        if member.participant is None:
            member.participant = Participant(run_of(text), Site.open(folder), FolderSessions(folder))
            member.participant._records = member.records  # as they lie on the disk, read once
        return member.participant

    def _watch_calls(self) -> None:
        """All by which a file is changed. The disk is not waited for: it is a process that dies here, not a machine."""
        real_write = os.write

        def write(descriptor: int, data: Any) -> int:
            if self._acting.tick():
                if (
                    fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
                ):  # a head is replaced whole or not at all
                    real_write(descriptor, data[: len(data) // 2])
                raise Killed
            return real_write(descriptor, data)

        def fsync(descriptor: int) -> None:
            if self._acting.tick():
                raise Killed

        self.patch.setattr(os, "write", write)
        self.patch.setattr(os, "fsync", fsync)
        for name in ("replace", "rename", "unlink"):
            self.patch.setattr(os, name, self._mortal(getattr(os, name)))

    def _mortal(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self._acting.tick():
                raise Killed
            return real(*arguments, **named)

        return call

    def _watch_sums(self) -> None:
        """What each site adds to a sum, and which attempts have failed."""
        world, noised = self, Participant.noised
        attempt = secure_grid.SecureAggregationGrid._attempt

        def noting(self: Participant, encoded: Any, number: int, tried: int, share: float) -> Any:
            made = noised(self, encoded, number, tried, share)
            key = (self.position, number, tried)  # a copy: the site erases its own
            sent = world.vectors.setdefault(key, made.values.copy())
            assert (sent == made.values).all(), "an update was made anew"
            return made

        def trying(self: Any, machine: Any, *rest: Any) -> Any:
            try:
                return attempt(self, machine, *rest)
            except AttemptFailed:
                memory = self._coordinator.memory
                world.aborted.add((memory.round, memory.attempt))
                raise

        self.patch.setattr(Participant, "noised", noting)
        self.patch.setattr(secure_grid.SecureAggregationGrid, "_attempt", trying)
