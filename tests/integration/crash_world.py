"""A server and its sites as processes that are killed: the real apps and agents, real files, a folder for a SuperLink.

A parent that has imported everything forks each process, so that a restart takes a moment and not seconds. Everything
that is checked here holds at any moment, whoever has just died.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

from client_points import CLIENT_POINTS
from crash_plans import EXPERIMENT, NUM_SITES
from killing.sitecustomize import arm
from spool import TAKEN, get

from server.state import read_rounds
from simulations.run import environment, prepare
from tacit import config
from tacit.privacy.ledger import Entry, Ledger

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["crash_plans", "crash_world"])  # what a child needs is imported once


class World:
    """Sites and a server in a folder.

    Args:
        folder: empty.
        overrides: of the experiment.
        change: makes a child another one before it begins: a clock, say. Called in it with its name.
    """

    def __init__(
        self,
        folder: Path,
        *overrides: str,
        change: Callable[[str], None] | None = None,
        num_sites: int = NUM_SITES,
    ) -> None:
        wanted = config.loads(EXPERIMENT, overrides=(f"partition.num_clients={num_sites}", *overrides))
        prepared, self.wanted = prepare(wanted, folder), wanted
        self.folder, self.sites, self.experiment = folder, prepared.folder, prepared.experiment
        self.state, self.spool, self._change = folder / "server", folder / "spool", change
        self.spool.mkdir()
        self.labels = [site.label for site in self.experiment.federation.sites]
        self.names = ["server", *self.labels]
        for name in self.names:
            (folder / "points" / name).mkdir(parents=True)
        self.processes: dict[str, BaseProcess] = {}
        self.num_killed = 0
        with environment(PYTHONPATH=str(Path(__file__).parent)):  # does nothing when it is running already
            forkserver.ensure_running()
        self._paid: list[tuple[tuple[Entry, ...], float]] = [((), 0.0)] * num_sites

    # -- processes

    def start(self, name: str) -> None:
        target = serve if name == "server" else take_part
        self.processes[name] = FORKED.Process(
            target=target,
            args=(self.folder, name, self.experiment.to_toml(), self._change),
            name=name,
            daemon=True,
        )
        self.processes[name].start()

    def start_all(self) -> None:
        for name in self.names:
            if name not in self.processes:
                self.start(name)

    def kill(self, *names: str) -> None:
        """`kill -9`, all of them before anybody notices."""
        for name in names:
            self.processes[name].kill()
        for name in names:
            self.processes[name].join()

    def bury(self) -> list[str]:
        """Forgets whoever has died; nobody may end in any other way than by being killed, or with the run."""
        dead = [name for name, process in self.processes.items() if process.exitcode is not None]
        for name in dead:
            code = self.processes.pop(name).exitcode
            assert code == -signal.SIGKILL or (name, code) == ("server", 0), f"{name}: {code}\n{self.said()}"
            self.num_killed += code == -signal.SIGKILL
        return dead

    def run(
        self,
        disturb: Callable[[], None] = lambda: None,
        seconds: float = 240,
        until: Callable[[], bool] = lambda: False,
    ) -> None:
        """To the end, or until something holds: whoever dies is started again, once it is certain that all is well."""
        deadline = time.monotonic() + seconds
        self.start_all()
        try:
            while not (self.has_ended or until()):
                assert time.monotonic() < deadline, self.said()
                disturb()
                if self.bury():
                    self.check()
                    self.start_all()
                time.sleep(0.005)
        finally:
            self.stop()
        self.check()

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.join()
        self.processes.clear()

    # -- what there is to see

    @property
    def has_ended(self) -> bool:
        server = self.processes.get("server")
        return (self.state / "result.json").exists() and (server is None or server.exitcode == 0)

    @property
    def rounds(self) -> list[dict[str, object]]:
        return read_rounds(self.state / "rounds.jsonl")

    @property
    def num_rounds(self) -> int:
        path = self.state / "rounds.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def requests(self) -> Iterator[tuple[Path, str]]:
        """File of each request as the server sent it, and its type."""
        for path in self.spool.glob(f"*/*/{TAKEN}/*.asked"):
            yield path.parents[1] / path.name, get(path).metadata.message_type

    def said(self) -> str:
        """What all of them have said, for when a test fails."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"-- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in logs)

    def entries(self, site: int) -> tuple[Entry, ...]:
        """What a site has paid, read as after a restart, but from a copy: the site itself may want it just now."""
        return self._ledger(site)[0]

    def _ledger(self, site: int) -> tuple[tuple[Entry, ...], float]:
        folder, copy = self.sites / str(site) / "ledger", self.folder / "copies" / str(site)
        if not (folder / "ledger.jsonl.head").exists():
            return (), 0.0
        copy.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("ledger.jsonl.head", "ledger.jsonl"):  # in this order: a head is never ahead of its file
            shutil.copyfile(folder / name, copy / name)
            (copy / name).chmod(0o600)
        with Ledger.open(copy / "ledger.jsonl", durable=False) as ledger:
            return ledger.entries, ledger.spent(1e-5)

    def check(self) -> None:
        """D5: what was paid stays paid, and epsilon never decreases; nothing is in a sum that was not paid."""
        run, rounds = self.run_id, self.rounds
        assert [row["round"] for row in rounds] == list(range(1, len(rounds) + 1)), "none lost, none twice"
        for site, (before, spent) in enumerate(self._paid):
            after, spent_now = self._ledger(site)
            assert after[: len(before)] == before, "what was spent stays spent"
            assert spent_now >= spent, "epsilon never decreases"
            self._paid[site] = after, spent_now
            paid = {entry.round for entry in after if entry.run == run}
            label = self.labels[site]
            released = {row["round"] for row in rounds if label in row["survivors"]}  # type: ignore[operator]
            if self.experiment.privacy.record is None:
                assert not released or paid, "an update left and the ledger does not know of the run"
            else:
                assert released <= paid, f"{label} has not paid for {released - paid}"

    @property
    def run_id(self) -> str:
        path = self.state / "run.json"
        if not path.exists():
            return ""
        import json

        return str(json.loads(path.read_bytes())["run"])


def place(world: World, name: str, points: Sequence[str], first: int = 0, every: int = 1) -> None:
    """Puts points in the way of a process: when `first` rounds are complete, `first + every` and so on."""
    for i, point in enumerate(points):
        (world.folder / "points" / name / f"{first + i * every:05d}-{point}.{i}").touch()


def left(world: World) -> list[str]:
    """Points that nobody came to."""
    return sorted(f"{path.parent.name}: {path.name}" for path in (world.folder / "points").glob("*/*"))


# -- in the processes


def serve(folder: Path, name: str, experiment: str, change: Callable[[str], None] | None) -> None:
    """The server, from start to end."""
    _begin(folder, name, change)
    arm(folder / "points" / name)
    import json

    from flwr.app import Context, RecordDict
    from spool import FIRST_NODE, SpoolGrid

    from server.app import app
    from simulations.local_grid import RUN_ID, SERVER_NODE

    labels = [site.label for site in config.loads(experiment).federation.sites]
    nodes = folder / "nodes.json"
    if not nodes.exists():
        nodes.write_text(json.dumps({label: FIRST_NODE + i for i, label in enumerate(labels)}))
    os.environ["TACIT_NODES"] = str(nodes)
    app(
        SpoolGrid(folder / "spool", len(labels)),
        Context(RUN_ID, SERVER_NODE, {}, RecordDict(), {"experiment": experiment}),
    )


def take_part(folder: Path, name: str, experiment: str, change: Callable[[str], None] | None) -> None:
    """A site's agent, until it is killed."""
    _begin(folder, name, change)
    arm(folder / "points" / name, CLIENT_POINTS)
    from spool import FIRST_NODE, SpoolWire

    from client.agent import Agent
    from client.follower import Follower, Lines
    from client.pace import Pace

    number = int(name.removeprefix("site-")) - 1
    wire = SpoolWire(folder / "spool", FIRST_NODE + number, experiment)
    pace = Pace(quickest=0.003, slowest=0.02)
    Agent(folder / "sites" / str(number), wire, lambda digest: None, pace, Follower(Lines())).run()


def _begin(folder: Path, name: str, change: Callable[[str], None] | None) -> None:
    import logging

    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"TACIT_STATE": str(folder / "server"), "TACIT_FEDERATION": str(folder / "sites")}
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if change is not None:
        change(name)
