"""A SuperLink of our own on loopback: unmodified Flower programs, started, watched and stopped.

Two programs: `flower-superlink`, which carries the messages, and `flower-superexec`, which starts one process
per run. We start the second ourselves, in a session of its own, because whatever it starts (the `ServerApp`,
the simulation, all of Ray) stays in that session's process group and can be ended with it. Flower's own watch
on a parent process does not end a running simulation: its main thread waits in a join, which a signal that
another thread raises does not interrupt.

Guarantees:
    Leaving the `with` block, however that happens, leaves no process behind. (`kill -9` is no leaving.)
    Every environment made here has Flower's telemetry, update check and run-time installation off.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import secrets
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from server.processes import end_group, interrupted_once, postponed_interrupt
from tacit.errors import ConfigError, RunFailed, StorageError

LOOPBACK = "127.0.0.1"
CONNECTION = "tacit"  # name of this SuperLink in its own config.toml
START_SECONDS = 60.0


def environment(home: Path, variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every Flower program that the server side starts.

    Args:
        home: Flower's folder for this one SuperLink; never shared: installing a bundle there can race.
        variables: added on top, such as `TACIT_STATE`.
    """
    scripts = sysconfig.get_path("scripts")
    local = ",".join(filter(None, (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), LOOPBACK)))
    return {
        **os.environ,
        **(variables or {}),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        # Flower finds its own programs by name, and would ask its own address through a configured proxy.
        "PATH": os.pathsep.join((scripts, os.environ.get("PATH", os.defpath))),
        "NO_PROXY": local,
        "no_proxy": local,
    }


class SuperLink:
    """A SuperLink that exists for as long as the `with` block.

    Attributes:
        home: Flower's folder: configuration, installed bundle, logs.
        port: where it listens, on loopback only.
        environment: what programs that talk to it are to be started with.
    """

    def __init__(
        self,
        home: Path,
        *,
        port: int = 0,
        simulation: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`port` 0 takes a free one; `simulation` runs the sites too, on Ray, and lets no node connect.

        Raises:
            ConfigError: the port is taken.
            StorageError: on entering: another SuperLink uses the folder.
        """
        self.home = home.resolve()
        self.port = _free_port(port)
        self.environment = environment(self.home, variables)
        self._simulation = simulation
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> SuperLink:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = ("--superexec-auth-secret-file", str(self.home / "superexec.key"))
        link = ["flower-superlink", "--insecure", "--host", LOOPBACK, "--port", str(self.port)]
        link += ["--isolation", "process", "--disable-runtime-dependency-installation", *secret]
        executor = ["flower-superexec", "--insecure", "--runtime-api-address", f"{LOOPBACK}:{self.port}"]
        executor += ["--parent-pid", str(os.getpid()), *secret]
        with ExitStack() as stack:
            stack.enter_context(_locked(self.home))
            self._write_files()
            stack.enter_context(interrupted_once())
            stack.callback(self._stop)
            self._start(*link, *(["--simulation"] if self._simulation else []))
            self._wait_until_listening()
            self._start(*executor)
            self._leave = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.close()

    def check(self) -> None:
        """Raises `RunFailed`, with the end of its log, when one of the two programs has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RunFailed(f"{name} ended with code {process.returncode}\n{self.log_tail(name)}")

    def log_tail(self, name: str = "flower-superlink", lines: int = 15) -> str:
        """The last lines of one program's log."""
        text = (self.home / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _write_files(self) -> None:
        address = f"{LOOPBACK}:{self.port}"
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "{address}"\ninsecure = true\n'
        )
        key = self.home / "superexec.key"
        key.unlink(missing_ok=True)
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(32))

    def _stop(self) -> None:
        try:
            self._end_programs()
        except KeyboardInterrupt:  # the only one that there will be
            self._end_programs()
            raise

    def _end_programs(self) -> None:
        """Ends both programs and all that they started; the SuperLink last, so that a run can still report."""
        while self._processes:
            name = next(reversed(self._processes))
            end_group(self._processes[name])
            del self._processes[name]

    def _start(self, *command: str) -> None:
        with (self.home / f"{command[0]}.log").open("wb") as log, postponed_interrupt():
            self._processes[command[0]] = subprocess.Popen(
                command,
                env=self.environment,
                # Ray puts this folder first on its workers' path, and `client` is a common name for a folder.
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_until_listening(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _is_healthy(self.port):
            self.check()
            if time.monotonic() > deadline:
                raise RunFailed(f"flower-superlink does not listen after {START_SECONDS:.0f} s")
            time.sleep(0.05)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """A second SuperLink in the same folder would take over the first one's configuration."""
    with (home / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageError(f"{home}: another server works in this folder") from None
        yield


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        # As the SuperLink itself will do: connections of the last run that are still closing do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {LOOPBACK}:{port}: {error.strerror}", key="--port") from None
        return int(probe.getsockname()[1])


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
