"""A SuperLink of our own on loopback: unmodified Flower programs, started, watched and stopped.

Two programs: `flower-superlink`, which carries the messages, and `flower-superexec`, which starts one process
per run. We start the second ourselves, in a session of its own, because whatever it starts (the `ServerApp`,
the simulation, all of Ray) stays in that session's process group and can be ended with it. Flower's own watch
on a parent process does not end a running simulation: its main thread waits in a join, which a signal that
another thread raises does not interrupt.

Guarantees:
    Leaving the `with` block, however that happens, leaves no process behind.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from tacit.errors import ConfigError, RunFailed, StorageError
from tacit.processes import (
    LOOPBACK,
    Group,
    flower_environment,
    free_port,
    interrupted_once,
    postponed_interrupt,
)

CONNECTION = "tacit"  # name of this SuperLink in its own config.toml
START_SECONDS = 60.0


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
        try:
            self.port = free_port(port)
        except OSError as error:
            raise ConfigError(f"cannot listen on {LOOPBACK}:{port}: {error.strerror}", key="--port") from None
        self.environment = flower_environment(self.home, variables)
        self._simulation = simulation
        self._groups: dict[str, Group] = {}

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
            self._start(stack, *link, *(["--simulation"] if self._simulation else []))
            self._wait_until_listening()
            self._start(stack, *executor)  # ended first, so that a run can still report
            self._leave = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.close()

    def check(self) -> None:
        """Raises `RunFailed`, with the end of its log, when one of the two programs has ended."""
        for name, group in self._groups.items():
            if (code := group.leader.poll()) is not None:
                raise RunFailed(f"{name} ended with code {code}\n{self.log_tail(name)}")

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

    def _start(self, stack: ExitStack, *command: str) -> None:
        with (self.home / f"{command[0]}.log").open("wb") as log, postponed_interrupt():
            # Ray puts this folder first on its workers' path, and `client` is a common name for a folder.
            group = Group(command, environment=self.environment, folder=self.home, output=log)
            self._groups[command[0]] = stack.enter_context(group)

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


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
