"""A SuperLink of our own on loopback: unmodified Flower programs, started, watched and stopped.

Two programs: `flower-superlink`, which carries the messages, and `flower-superexec`, which starts one process
per run. We start the second ourselves, in a session of its own, because whatever it starts (the `ServerApp`,
the simulation, all of Ray) stays in that session's process group and can be ended with it. Flower's own watch
on a parent process does not end a running simulation: its main thread waits in a join, which a signal that
another thread raises does not interrupt.

Guarantees:
    Leaving the `with` block, however that happens, leaves no process behind.
    Two SuperLinks never work in one folder, not even when the owner of the first was killed.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import tomli_w

from server.flower_files import rotate, set_aside, trim
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
DATABASE = "superlink.db"
LINK, EXECUTOR = "flower-superlink", "flower-superexec"


class Tls(NamedTuple):
    """Files, PEM: the CA that clients trust, and a certificate of this SuperLink with its key."""

    ca: Path
    certificate: Path
    key: Path


class ProgramEnded(RunFailed):
    """One of Flower's programs has ended, or does not answer."""


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
        tls: Tls | None = None,
        patience: float = 0.0,
        on_listening: Callable[[SuperLink], None] = lambda link: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            home: Flower's folder.
            port: 0 takes a free one.
            simulation: runs the sites too, on Ray, and lets no node connect.
            variables: of the environment of all that is started.
            tls: with it nodes connect over TLS and with a registered key only, and what the SuperLink knows is kept
                in a database.
            patience: seconds to wait for the programs of a server that was killed.
            on_listening: called when the SuperLink answers and nothing is executed yet.

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
        self.tls, self._patience, self._on_listening = tls, patience, on_listening
        self._simulation = simulation
        self._groups: dict[str, Group] = {}
        self._executor = ExitStack()

    @property
    def address(self) -> str:
        """Where it listens, HOST:PORT."""
        return f"{LOOPBACK}:{self.port}"

    def __enter__(self) -> SuperLink:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._groups.clear()  # of an earlier `with` block
        with ExitStack() as stack:
            self._lock = stack.enter_context(_locked(self.home, self._patience))
            self._write_files()
            trim(self.home / DATABASE)
            stack.enter_context(interrupted_once())
            self._start(stack, LINK, *self._link_options())
            self._wait_until_listening()
            self._on_listening(self)
            stack.enter_context(self._executor)  # ended first, so that a run can still report
            self.start_executor()
            self._leave = stack.pop_all()
        return self

    def start_executor(self) -> None:
        """Starts what starts one process per run; first ends the one there is, and with it every such process."""
        self._executor.close()
        trust = ("--root-certificates", str(self.tls.ca)) if self.tls else ("--insecure",)
        watched = ("--parent-pid", str(os.getpid()))
        self._start(
            self._executor, EXECUTOR, "--runtime-api-address", self.address, *trust, *watched, *self._secret
        )

    def _link_options(self) -> list[str]:
        options = ["--host", LOOPBACK, "--port", str(self.port), "--isolation", "process", *self._secret]
        options += ["--disable-runtime-dependency-installation"]
        if self._simulation:
            options += ["--simulation"]
        if self.tls is None:
            return [*options, "--insecure"]
        options += ["--ssl-ca-certfile", str(self.tls.ca), "--ssl-certfile", str(self.tls.certificate)]
        options += ["--ssl-keyfile", str(self.tls.key), "--enable-supernode-auth"]
        return [*options, "--database", str(self.home / DATABASE)]

    @property
    def _secret(self) -> tuple[str, str]:
        return "--superexec-auth-secret-file", str(self.home / "superexec.key")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.close()

    def check(self) -> None:
        """Raises `ProgramEnded`, with the end of its log, when one of the two programs has ended. Keeps logs short."""
        for name, group in self._groups.items():
            rotate(self.home / f"{name}.log")
            if (code := group.leader.poll()) is not None:
                raise ProgramEnded(f"{name} ended with code {code}\n{self.log_tail(name)}")

    def log_tail(self, name: str = "flower-superlink", lines: int = 15) -> str:
        """The last lines of one program's log."""
        text = (self.home / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _write_files(self) -> None:
        trust = {"root-certificates": str(self.tls.ca)} if self.tls else {"insecure": True}
        connection = {"default": CONNECTION, CONNECTION: {"address": self.address, **trust}}
        (self.home / "config.toml").write_text(tomli_w.dumps({"superlink": connection}), encoding="utf-8")
        key = self.home / "superexec.key"
        key.unlink(missing_ok=True)
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(32))

    def _start(self, stack: ExitStack, *command: str) -> None:
        path = self.home / f"{command[0]}.log"
        set_aside(path)
        with (
            path.open("ab") as log,
            postponed_interrupt(),
        ):  # appended to, so that it can be cut while it grows
            # Ray puts this folder first on its workers' path, and `client` is a common name for a folder.
            group = Group(
                command, environment=self.environment, folder=self.home, output=log, inherits=[self._lock]
            )
            self._groups[command[0]] = stack.enter_context(group)

    def _wait_until_listening(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _is_healthy(self.port, self.tls):
            self.check()
            if time.monotonic() > deadline:
                raise ProgramEnded(f"flower-superlink does not listen after {START_SECONDS:.0f} s")
            time.sleep(0.05)


@contextmanager
def _locked(home: Path, patience: float = 0.0) -> Iterator[int]:
    """The lock of a folder, whose programs inherit it: it is free again when the last of them is gone."""
    with (home / "lock").open("wb") as lock:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise StorageError(f"{home}: another server works in this folder") from None
                time.sleep(0.1)
        yield lock.fileno()


def _is_healthy(port: int, tls: Tls | None) -> bool:
    connection = (
        http.client.HTTPSConnection(
            LOOPBACK, port, timeout=2, context=ssl.create_default_context(cafile=str(tls.ca))
        )
        if tls
        else http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    )
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
