"""Programs of Flower's that we start: what they find in their environment, and that they end when we do.

Run as a program itself, this file is the watch over one process group: its standard input ends when whoever started
it is gone, `kill -9` included, and then it ends the group. So it imports the standard library only.
"""

from __future__ import annotations

import ipaddress
import os
import resource
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

LOOPBACK = "127.0.0.1"
STOP_SECONDS = 3.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Group:
    """A program and all that it starts: a process group of its own, for as long as the `with` block.

    Attributes:
        leader: the program itself.

    Guarantees:
        After the `with` block no process of the group is left.
        Where the block is never left, because we are killed with `kill -9`, the group ends too.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        output: IO[bytes] | None = None,
        patience: float = STOP_SECONDS,
        inherits: Sequence[int] = (),
    ) -> None:
        """Starts it.

        Args:
            command: the program and its arguments.
            environment: all of its environment.
            folder: where it runs.
            output: where it prints to; None = where we do.
            patience: seconds between SIGTERM and SIGKILL when the group has to end.
            inherits: files that the program keeps open, for the lock that is on them.
        """
        self._patience = patience
        self.leader = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=inherits,
        )
        # Linux can signal a child when its parent dies, but only the child itself, not what it has started.
        try:
            self._watch = subprocess.Popen(
                [sys.executable, "-IS", __file__, str(self.leader.pid), str(patience)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:  # no process more, or no memory: then nobody would watch over this one
            end_group(self.leader.pid, 0.0, self.leader.poll)
            self.leader.wait()
            raise

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        with postponed_interrupt():
            end_group(self.leader.pid, self._patience, self.leader.poll)
            self.leader.wait()
            self._watch.kill()
            self._watch.communicate()


def end_group(group: int, patience: float, reap: Callable[[], object] = lambda: None) -> None:
    """Ends a process group: SIGTERM, and after `patience` seconds SIGKILL.

    Args:
        group: its number.
        patience: in seconds; cut short when nobody is left.
        reap: takes note of a child's end; until its leader has been waited for, a group never looks empty.
    """
    _signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        reap()
        if not _signal_group(group, 0):
            return
        time.sleep(0.05)
    _signal_group(group, signal.SIGKILL)


def flower_environment(home: Path, variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every Flower program that Tacit starts, and of what those start.

    Args:
        home: Flower's folder for this one program; never shared: installing a bundle there can race.
        variables: added on top, such as `TACIT_STATE`.

    Guarantees:
        Flower's telemetry, its update check and its run-time installation are off.
    """
    local = ",".join(filter(None, (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), LOOPBACK)))
    return {
        **os.environ,
        **(variables or {}),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
        # Flower finds its own programs by name, and would ask its own address through a configured proxy.
        "PATH": os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath))),
        "NO_PROXY": local,
        "no_proxy": local,
    }


def tacit_command(arguments: Iterable[str]) -> list[str]:
    """A command of this installation's `tacit`, whatever is first on the path."""
    return [str(Path(sysconfig.get_path("scripts")) / "tacit"), *arguments]


def leave_no_core() -> None:
    """A crash of this process, or of one that it starts, leaves no file with records and keys in it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address: a name or a number, IPv6 with or without brackets."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def free_port(port: int = 0) -> int:
    """`port` if it is free on loopback, or a free one for 0; `OSError` if it is taken."""
    with socket.socket() as probe:
        # As the SuperLink itself will do: connections of the last run that are still closing do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((LOOPBACK, port))
        return int(probe.getsockname()[1])


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Within it the first Ctrl-C or SIGTERM raises `KeyboardInterrupt`, and others are ignored. Main thread only.

    Whoever is impatient must not be able to stop the clearing up, which takes seconds.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    with _handling(interrupt):
        yield


@contextmanager
def postponed_interrupt() -> Iterator[None]:
    """Ctrl-C and SIGTERM at its end: one that comes while a process starts must not lose track of it."""
    requests: list[int] = []
    with _handling(lambda number, frame: requests.append(number)):
        yield
    if requests:
        signal.raise_signal(requests[0])


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _signal_group(group: int, number: int) -> bool:
    """Sends a signal (0 = none) to a process group; whether anybody was there."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end_group(int(sys.argv[1]), float(sys.argv[2]))
