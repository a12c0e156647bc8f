"""Submits an experiment to a SuperLink as one Flower run, and follows it to its end.

Through Flower's own command line, which is its public interface for this. `flwr` exits with 0 when it fails,
so its JSON is read. A run's real end is in the state directory: the `ServerApp` writes `result.json` or
`failure.json`; Flower's own status is asked only to notice a run that died without a word.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click
import tomli_w

from server import bundle
from server.state import check_folder
from server.superlink import CONNECTION, SuperLink
from tacit.errors import RunFailed
from tacit.processes import postponed_interrupt

POLL_SECONDS = 0.2
STATUS_SECONDS = (5.0, 60.0)  # each question starts a process of about a second: rarer and rarer
LOG_LINES = 15


class RunStatus(NamedTuple):
    """What Flower says of a run: "pending", "starting", "running" or "finished:..." and a text."""

    status: str
    details: str

    @property
    def has_ended(self) -> bool:
        """Whether the run is over, well or badly."""
        return self.status.startswith("finished")


def run(
    link: SuperLink,
    experiment: str,
    state: Path,
    *,
    federation: str = "",
    on_poll: Callable[[], None] | None = None,
    timeout: float | None = None,
) -> None:
    """Submits `experiment` and returns when the `ServerApp` has written its result to `state`.

    Args:
        link: a SuperLink whose `TACIT_STATE` is `state`.
        experiment: canonical TOML text.
        state: the server's state directory.
        federation: Flower's federation configuration, as `key=value` pairs.
        on_poll: called about five times a second, to show progress.
        timeout: seconds after which the run is stopped.

    Raises:
        RunFailed: the run ended without a result, with the reason and the end of its log.
        StorageError: the folder is another experiment's, or cannot be used.
    """
    check_folder(state, experiment)
    for outcome in ("result.json", "failure.json"):
        (state / outcome).unlink(missing_ok=True)  # of an earlier run
    run_id = submit(link, experiment, federation=federation)
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = STATUS_SECONDS[0]
    next_status = time.monotonic() + pause
    while not _has_result(link, run_id, state):
        link.check()
        if on_poll is not None:
            on_poll()
        now = time.monotonic()
        if deadline is not None and now > deadline:
            stop(link, run_id)
            raise RunFailed(f"no result after {timeout:.0f} s\n{log_tail(link, run_id)}")
        if now > next_status:
            _check_alive(link, run_id, state)
            pause = min(2 * pause, STATUS_SECONDS[1])
            next_status = time.monotonic() + pause
        time.sleep(POLL_SECONDS)
    if on_poll is not None:
        on_poll()


def submit(link: SuperLink, experiment: str, *, federation: str = "") -> int:
    """Starts a run; returns Flower's id of it.

    Raises:
        RunFailed: Flower refused it.
    """
    overrides = link.home / "overrides.toml"
    overrides.write_text(tomli_w.dumps({"experiment": experiment}), encoding="utf-8")
    source = bundle.write(link.home / "bundle")
    options = ("--federation-config", federation) if federation else ()
    answer = _flwr(link, "run", str(source), CONNECTION, "-c", str(overrides), *options)
    return int(answer["run-id"])


def status(link: SuperLink, run_id: int) -> RunStatus:
    """How Flower sees a run. A `ServerApp` that was killed is "running" for another minute."""
    row = _flwr(link, "list", CONNECTION, "--run-id", str(run_id))["runs"][0]
    return RunStatus(row["status"], row["status-details"])


def stop(link: SuperLink, run_id: int) -> None:
    """Tells Flower to stop a run; one that has just ended by itself is as good."""
    try:
        _flwr(link, "stop", str(run_id), CONNECTION)
    except RunFailed:
        if not status(link, run_id).has_ended:
            raise


def num_online_nodes(link: SuperLink) -> int:
    """How many SuperNodes are connected."""
    nodes = _flwr(link, "supernode", "list", CONNECTION)["nodes"]
    return sum(node["status"] == "online" for node in nodes)


def log_tail(link: SuperLink, run_id: int, lines: int = LOG_LINES) -> str:
    """The last lines that the `ServerApp` (in simulation, the clients too) has logged."""
    text, _ = _command(link, "log", str(run_id), CONNECTION, "--show")
    return "\n".join(click.unstyle(text).splitlines()[-lines:])


def _has_result(link: SuperLink, run_id: int, state: Path) -> bool:
    failure = state / "failure.json"
    if failure.exists():
        try:
            reason = json.loads(failure.read_text(encoding="utf-8"))["error"]
        except ValueError:  # half written
            return False
        raise RunFailed(f"{reason}\n{log_tail(link, run_id)}")
    return (state / "result.json").exists()


def _check_alive(link: SuperLink, run_id: int, state: Path) -> None:
    now = status(link, run_id)
    # Its files come first: a run that ended while we asked is not a silent death.
    if now.has_ended and not _has_result(link, run_id, state):
        raise RunFailed(f"the run is {now.status}: {now.details}\n{log_tail(link, run_id)}")


def _flwr(link: SuperLink, *arguments: str) -> dict[str, Any]:
    """Runs one `flwr` command and returns its answer."""
    printed, errors = _command(link, *arguments, "--format", "json")
    try:
        answer: dict[str, Any] = json.loads(printed)
    except ValueError:
        answer = {"error-message": errors or printed}
    if not answer.get("success"):
        link.check()
        raise RunFailed(f"flwr {arguments[0]}: {str(answer.get('error-message', '')).strip()}")
    return answer


def _command(link: SuperLink, *arguments: str) -> tuple[str, str]:
    """What one `flwr` command prints, and its errors."""
    with ExitStack() as stack:
        with (
            postponed_interrupt()
        ):  # `subprocess.run` would lose a program that is interrupted while it starts
            program = subprocess.Popen(
                ["flwr", *arguments],
                env=link.environment,
                cwd=link.home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(program)
            stack.callback(program.kill)  # no effect on one that has ended
        stdout, stderr = program.communicate()
    return stdout, stderr
