"""What one look of the supervisor does when something is wrong with one run, or with one node."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from server.flower_wire import Node
from server.runs import Run
from server.superlink import ProgramEnded, Tls
from server.supervisor import ALONE_SECONDS, ServerFailed, Supervisor, Watch
from tacit import config
from tacit.errors import RunFailed, StorageError

EXPERIMENT = """
name = "two sites"
[secure_aggregation]
enabled = false
[[federation.sites]]
label = "a"
rows = 9
[[federation.sites]]
label = "b"
rows = 9
"""
KEYS = {"a": b"key of a", "b": b"key of b"}


class Told(Watch):
    """Remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.reports: list[tuple[str, str]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def write_report(self, run: Run, outcome: str) -> None:
        self.reports.append((run.id, outcome))


class TwoSites:
    """Both have signed."""

    def __init__(self) -> None:
        self.problem: Exception | None = None

    def nodes(self) -> Mapping[str, Path]:
        if self.problem:
            raise self.problem
        return {label: Path(label) for label in KEYS}

    def epoch(self) -> bytes:
        return b"1"

    def missing(self) -> str:
        return ""


class Flower:
    """A SuperLink's Control API that refuses what it is told to."""

    def __init__(self) -> None:
        self.problem: Exception | None = None
        self.started = 0

    def nodes(self) -> list[Node]:
        return [Node(i, key, True) for i, key in enumerate(KEYS.values())]

    def unregister(self, node: int) -> None: ...

    def register(self, key: bytes, name: str) -> int:
        raise self.problem or AssertionError

    def unfinished(self) -> list[int]:
        return []

    def start(self, bundle: Path, experiment: str) -> int:
        self.started += 1
        raise self.problem or AssertionError


@pytest.fixture
def members() -> TwoSites:
    return TwoSites()


@pytest.fixture
def supervisor(tmp_path: Path, members: TwoSites, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    monkeypatch.setattr("server.supervisor.load_key", lambda path: KEYS[str(path)])
    (tmp_path / "flower").mkdir()
    tls = Tls(tmp_path / "ca", tmp_path / "c", tmp_path / "k")
    return Supervisor(tmp_path, tmp_path, tls=tls, members=members, watch=Told())


def told(supervisor: Supervisor) -> Told:
    assert isinstance(supervisor._watch, Told)
    return supervisor._watch


def turn(supervisor: Supervisor, control: Any) -> None:
    supervisor._next_look = 0.0
    supervisor._turn(control)


def test_a_run_that_cannot_go_on_does_not_keep_the_others_from_theirs(supervisor: Supervisor) -> None:
    """Whatever is wrong with it or its folder: what Flower refuses, what is damaged."""
    control, experiment = Flower(), config.loads(EXPERIMENT)
    unreadable, torn, refused = (supervisor.queue.submit(experiment) for _ in range(3))
    (unreadable.folder / "status.json").write_text("{")
    (torn.folder / "run.json").write_text("[]")
    control.problem = RunFailed("the SuperLink refuses: 400")
    for _ in range(4):
        turn(supervisor, control)
    assert (unreadable.folder / "status.json").read_text() == "{", (
        "nothing was written over what somebody may still read"
    )
    assert torn.status.state == "failed" and "run.json: damaged" in torn.status.reason
    assert refused.status.state == "failed" and "refuses: 400" in refused.status.reason
    assert [said for said in told(supervisor).said if "status.json is damaged" in said] == [
        f"run {unreadable.id[:8]}: status.json is damaged; it is left alone"
    ]
    control.problem = ProgramEnded("the SuperLink does not answer")
    last = supervisor.queue.submit(experiment)
    with pytest.raises(ProgramEnded):  # which is not the run's fault: `run` starts it again
        turn(supervisor, control)
    assert last.status.state == "running"


def test_a_run_whose_end_cannot_be_written_does_not_keep_the_others_from_theirs(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a full disk, say; it is tried again after a while. A folder in the way of the new file stands for it."""
    control, experiment = Flower(), config.loads(EXPERIMENT)
    control.problem = RunFailed("the SuperLink refuses: 400")
    stuck, stopped, other = (supervisor.queue.submit(experiment) for _ in range(3))
    stopped.ask_to_stop()
    for run in (stuck, stopped):
        (run.folder / ".status.json.tmp").mkdir()
    now = time.monotonic()
    for _ in range(3):
        turn(supervisor, control)
    assert other.status.state == "failed"
    assert [run.status.state for run in (stuck, stopped)] == ["queued", "queued"]
    assert len([said for said in told(supervisor).said if "cannot be ended, and is left alone" in said]) == 2
    for run in (stuck, stopped):
        (run.folder / ".status.json.tmp").rmdir()
    monkeypatch.setattr("server.supervisor.time.monotonic", lambda: now + 2 * ALONE_SECONDS)
    for _ in range(2):
        turn(supervisor, control)
    assert [run.status.state for run in (stuck, stopped)] == ["failed", "stopped"]


def test_nodes_that_cannot_be_noted_end_neither_runs_nor_server(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    (tmp_path / "flower" / ".nodes.json.tmp").mkdir()
    turn(supervisor, Flower())
    (said,) = told(supervisor).said
    assert ".nodes.json.tmp: Is a directory" in said
    (tmp_path / "flower" / ".nodes.json.tmp").rmdir()
    turn(supervisor, Flower())
    assert "a is here" in told(supervisor).said


def test_a_node_that_flower_refuses_ends_neither_runs_nor_server(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = Flower()
    monkeypatch.setattr(control, "nodes", list)
    control.problem = RunFailed("the SuperLink refuses: 409")
    for _ in range(3):
        turn(supervisor, control)
    assert told(supervisor).said == [
        "nodes are not registered as the roster says: the SuperLink refuses: 409"
    ]
    monkeypatch.undo()
    supervisor._registered = {}
    monkeypatch.setattr("server.supervisor.load_key", lambda path: KEYS[str(path)])
    turn(supervisor, control)
    assert "a is here" in told(supervisor).said


def test_what_all_runs_need_ends_the_server_and_fails_no_run(
    supervisor: Supervisor, members: TwoSites
) -> None:
    run = supervisor.queue.submit(config.loads(EXPERIMENT))
    members.problem = StorageError("roster.json: damaged")
    with pytest.raises(ServerFailed, match=r"roster\.json: damaged"):
        turn(supervisor, Flower())
    assert run.status.state == "queued"


def test_the_report_is_written_before_a_run_has_ended_and_only_if_it_had_begun(
    supervisor: Supervisor,
) -> None:
    begun, never = (supervisor.queue.submit(config.loads(EXPERIMENT)) for _ in range(2))
    (begun.folder / "run.json").write_text(
        json.dumps({**json.loads((begun.folder / "run.json").read_text()), "starts": 1})
    )
    for run in (begun, never):
        run.ask_to_stop()
    turn(supervisor, Flower())
    assert [run.status.state for run in (begun, never)] == ["stopped", "stopped"]
    assert told(supervisor).reports == [(begun.id, "stopped")]
    assert "its report is being written" in (begun.folder / "log.txt").read_text()


def test_a_run_that_has_lost_too_many_sites_says_whom_it_waits_for(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on when they are back: nobody has to resume it."""
    control, run = Flower(), supervisor.queue.submit(config.loads(EXPERIMENT))
    monkeypatch.setattr(control, "start", lambda bundle, experiment: 1)
    online, reasons = iter([True, True, False, False, True, True]), list[str]()

    def nodes() -> list[Node]:
        return [Node(0, KEYS["a"], True), Node(1, KEYS["b"], next(online, True))]

    def is_alive(*_: object) -> bool:
        supervisor._next_look = 0.0
        reasons.append(run.status.reason)
        return len(reasons) < 6

    monkeypatch.setattr(control, "nodes", nodes)
    monkeypatch.setattr(supervisor, "_is_alive", is_alive)
    monkeypatch.setattr(supervisor.link, "check", lambda: None)
    monkeypatch.setattr(supervisor.link, "log_tail", lambda program: "")
    turn(supervisor, control)
    assert "waits for 1 of 2 sites: b" in reasons
    assert reasons[-1] == "" == reasons[0]
    assert run.status.state == "running"


def test_a_run_fails_also_where_flower_refuses_to_end_its_serverapp(supervisor: Supervisor) -> None:
    """What cannot be ended is not worth the other runs, or the server."""

    class Refusing(Flower):
        def unfinished(self) -> list[int]:
            raise RunFailed("the SuperLink refuses: 500")

    run = supervisor.queue.submit(config.loads(EXPERIMENT))
    control = Refusing()
    control.problem = RunFailed("the SuperLink refuses: 400")
    turn(supervisor, control)
    assert run.status.state == "failed"
    assert any("its ServerApp cannot be ended" in said for said in told(supervisor).said)


def test_a_run_that_was_asked_to_stop_is_not_started_when_its_end_could_not_be_written(
    supervisor: Supervisor,
) -> None:
    control, run = Flower(), supervisor.queue.submit(config.loads(EXPERIMENT))
    run.ask_to_stop()
    in_the_way = run.folder / ".status.json.tmp"
    in_the_way.mkdir()
    real = supervisor.queue.next

    def next_run(alone: Any) -> Any:
        if in_the_way.exists():
            in_the_way.rmdir()  # a moment's trouble, over by then
        return real(alone)

    supervisor.queue.next = next_run  # type: ignore[method-assign]
    turn(supervisor, control)
    assert control.started == 0 and run.status.state == "queued"
