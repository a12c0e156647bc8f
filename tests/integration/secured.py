"""A secured federation of real processes on loopback, for the tests that kill some of them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from loopback import three_sites

from server.experiments import ready_for
from server.runs import Queue, Run
from tacit.config import Experiment
from tacit.processes import free_port
from tests.unit.federation_kits import accepted, enrolled, signed

TACIT = str(Path(sysconfig.get_path("scripts")) / "tacit")
KILLING = Path(__file__).parent / "killing"


class Federation:
    """Three sites, unless `overrides` say otherwise, and a coordinator.

    Everything that is started carries the folder in its environment.
    """

    def __init__(self, folder: Path, *overrides: str, address: str = "") -> None:
        self.folder = folder
        prepared = three_sites(folder / "data", *overrides)
        self.experiment = prepared.experiment
        rows = {site.label: site.rows for site in self.experiment.federation.sites}
        rules = {
            "max_dropouts": self.experiment.secure_aggregation.max_dropouts,
            "min_clients": self.experiment.cohort_size,
        }
        self.kit = enrolled(folder, rows, address=address or f"localhost:{free_port()}", rules=rules)
        signed(self.kit)
        accepted(self.kit)
        for i, label in enumerate(rows):
            shutil.copyfile(prepared.data_path(i), folder / "kits" / label / "data.csv")
        self.labels = list(rows)
        self.points = folder / "points"
        self.points.mkdir()
        self.queue = Queue(self.kit.folder / "state" / "runs")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """The server, or one site."""
        server = ("server", "--kit", str(self.kit.folder))
        site = ("client", "run", str(self.folder / "kits" / name))
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*self.host(name), TACIT, *(server if name == "server" else site)],
                env={
                    **os.environ,
                    "PYTHONPATH": str(KILLING),
                    "TACIT_TEST_POINTS": str(self.points),
                    "STARTED_BY_TEST": str(self.folder),
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def host(self, name: str) -> list[str]:
        """How to start something on its host: all are on this one."""
        return []

    def start_all(self) -> None:
        for name in ("server", *self.labels):
            self.start(name)

    def kill(self, name: str) -> None:
        """`kill -9` of a process that `start` started."""
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def kill_program(self, program: str) -> None:
        """`kill -9` of Flower's program of the server, and of nothing else."""
        wait_for(lambda: self.pids(program) != [])
        for pid in self.pids(program):
            os.kill(pid, signal.SIGKILL)

    def pids(self, program: str) -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                environment = (process / "environ").read_bytes()
            except OSError:  # it has just ended, or is somebody else's
                continue
            names = [Path(os.fsdecode(word)).name for word in words[:2]]
            if program in names and os.fsencode(f"STARTED_BY_TEST={self.folder}\0") in environment:
                found.append(int(process.name))
        return found

    def listening(self) -> dict[int, str]:
        """Port and IPv4 address of every socket on which the server and its programs wait; "any" for IPv6."""
        inodes = set()
        for program in ("tacit", "flower-superlink", "flower-superexec", "flwr-serverapp"):
            for pid in self.pids(program):
                for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        inodes.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
        found = {}
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    host, port = fields[1].split(":")
                    address = ".".join(str(byte) for byte in reversed(bytes.fromhex(host)))
                    found[int(port, 16)] = address if table == "tcp" else "any"
        return found

    def submit(self, *overrides: str) -> Run:
        from tacit import config

        experiment: Experiment = config.loads(self.experiment.to_toml(), overrides=overrides)
        return self.queue.submit(ready_for(experiment, self.kit.folder))

    def said(self) -> str:
        """What all of them have said, for when a test fails."""
        logs = [*self.folder.glob("*.log"), *self.kit.folder.glob("state/runs/*/log.txt")]
        return "\n".join(f"-- {path}\n{path.read_text(errors='replace')[-4000:]}" for path in logs)

    def wait_rounds(self, run: Run, number: int) -> None:
        """Until so many rounds are complete."""
        wait_for(lambda: run.num_rounds >= number or run.status.has_ended, told=self.said)

    def wait_end(self, run: Run, seconds: float = 280) -> None:
        wait_for(lambda: run.status.has_ended, seconds, self.said)

    def stop(self) -> dict[str, int]:
        """Exit codes of all that run, after SIGTERM."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(timeout=120) for name, process in self.processes.items()}


def wait_for(condition: Callable[[], bool], seconds: float = 280, told: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)
