"""Real `tacit` processes without the seconds of importing: a parent that has imported everything forks each of them.

Each is a process of its own, with its own session, signals as a shell gives them, and an exit code.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

ROOT = Path(__file__).parents[2]

PARENT = """
import json, os, signal, sys
import client.app, client.private_gradients, server.app, simulations.cohort, simulations.findings
import simulations.local_grid, simulations.progress, simulations.run, simulations.sources
import tacit.cli, tacit.report.html, tacit.report.plots, tacit.report.summary, tacit.tasks.tabular
import matplotlib.figure, pandas, sklearn.datasets, sklearn.metrics
exec(sys.argv[1])
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if order["cores"]:
            os.sched_setaffinity(0, order["cores"])
        for number, name in ((0, os.devnull), (1, order["stdout"]), (2, order["stderr"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
        sys.argv = ["tacit", *order["arguments"]]
        code = 70
        try:
            tacit.cli.main(order["arguments"])
        except SystemExit as end:
            code = end.code
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Run:
    """One `tacit` process."""

    def __init__(self, parent: subprocess.Popen[str], folder: Path, order: dict[str, Any]) -> None:
        self._parent, self._folder = parent, folder
        assert parent.stdin is not None
        parent.stdin.write(json.dumps(order) + "\n")
        parent.stdin.flush()
        self.pid = int(self._line())
        self.code: int | None = None

    def _line(self) -> str:
        output: IO[str] | None = self._parent.stdout
        assert output is not None
        return output.readline()

    @property
    def running(self) -> bool:
        if self.code is not None:
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        return state != "Z"

    def send(self, number: signal.Signals) -> None:
        """A signal, unless it has ended by itself."""
        if self.running:
            os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code; minus the signal that ended it."""
        if self.code is None:
            self.code = int(self._line())
        return self.code

    @property
    def stdout(self) -> str:
        return (self._folder / "stdout").read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return (self._folder / "stderr").read_text(encoding="utf-8")


class Warm:
    """Starts `tacit` processes, one at a time.

    Args:
        folder: for what they print.
        prepare: Python statements for the parent: what is cached there need not be computed by each child.
    """

    def __init__(self, folder: Path, prepare: str = "") -> None:
        self._folder = folder
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
        environment.pop("OMP_NUM_THREADS", None)  # of the tests: as many threads as a user's
        self._parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, prepare],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start(self, *arguments: object, cores: set[int] | None = None, terminal: str = "") -> Run:
        """A process that runs.

        Args:
            arguments: of `tacit`.
            cores: those that it may use; all.
            terminal: its standard output; a file.
        """
        order = {
            "arguments": [str(argument) for argument in arguments],
            "stdout": terminal or str(self._folder / "stdout"),
            "stderr": str(self._folder / "stderr"),
            "cores": sorted(cores or ()),
        }
        return Run(self._parent, self._folder, order)

    def run(self, *arguments: object, cores: set[int] | None = None) -> Run:
        """Started and ended."""
        run = self.start(*arguments, cores=cores)
        run.wait()
        return run

    def close(self) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait(timeout=60)
        self._parent.stdout.close()


@contextmanager
def warm(factory: pytest.TempPathFactory, prepare: str = "") -> Iterator[Warm]:
    """For the length of a module."""
    parent = Warm(factory.mktemp("warm"), prepare)
    try:
        yield parent
    finally:
        parent.close()
