"""A federation in real processes on loopback: `tacit server`, two agents and a stock Flower node, one SuperLink."""

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from loopback import Outside, local_model, same_model, still_running, three_sites

from server import submission
from server.superlink import SuperLink
from tacit.errors import RunFailed

pytestmark = pytest.mark.processes

ROUNDS = "training.rounds=1"  # six exchanges, each of several seconds of Flower's waiting and of imports
TACIT = str(Path(sysconfig.get_path("scripts")) / "tacit")


@dataclass(frozen=True)
class Rehearsal:
    """What was seen of two agents, a stock node and a server in one experiment; the sites were then told to stop."""

    server_code: int
    server_output: str
    client_codes: list[int]
    client_output: str
    rounds: list[dict[str, object]]
    state: Path
    asked_outside: list[bytes]
    leftovers: list[str]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    folder = tmp_path_factory.mktemp("rehearsal")
    prepared = three_sites(folder, ROUNDS)
    experiment = prepared.folder / "experiment.toml"  # beside the roster, as `tacit partition` puts it
    experiment.write_text(prepared.experiment.to_toml())
    port = _port()
    state, address = folder / "state", f"127.0.0.1:{port}"
    with contextlib.closing(Outside()) as outside, contextlib.ExitStack() as stack:
        # First the sites: they need not know when the coordinator starts.
        agents = [
            ("client", "run", str(prepared.folder / str(i)), "--insecure-loopback", "--superlink", address)
            for i in range(2)
        ]
        stock = ("client", "node", "--insecure-loopback", "--site", str(prepared.folder / "2"))
        sites = [*agents, (*stock, "--superlink", address)]
        clients = [stack.enter_context(_tacit(folder, outside, *site)) for site in sites]
        arguments = ("--insecure-loopback", str(experiment), "--state", str(state), "--port", str(port))
        server = stack.enter_context(_tacit(folder, outside, "server", *arguments))
        server_code = server.wait(timeout=200)
        for client in clients:
            client.send_signal(signal.SIGTERM)
        client_codes = [client.wait(timeout=90) for client in clients]
        return Rehearsal(
            server_code,
            (folder / "server.log").read_text(),
            client_codes,
            (folder / "client.log").read_text(),
            [json.loads(line) for line in (state / "rounds.jsonl").read_text().splitlines()],
            state,
            outside.requests,
            still_running(folder),
        )


def _port() -> int:
    """A free port that the system gives to nobody, if there is one: until the server listens, others start, too."""
    given_away = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in (*range(given_away - 1 - os.getpid() % 10_000, 1024, -1), 0):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)) as probe:
            return int(probe.getsockname()[1])
    raise AssertionError("no port is free")


@contextlib.contextmanager
def _tacit(folder: Path, outside: Outside, name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `tacit` command; all that it starts carries `folder` in its environment."""
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [TACIT, name, *arguments],
            env={**os.environ, **outside.variables, "STARTED_BY_TEST": str(folder)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=90)


def test_the_experiment_runs_to_its_end(rehearsal: Rehearsal) -> None:
    assert rehearsal.server_code == 0, rehearsal.server_output + rehearsal.client_output
    assert (rehearsal.state / "result.json").exists()
    assert [row["survivors"] for row in rehearsal.rounds] == [["site-1", "site-2", "site-3"]]
    assert "done: 1 of 1 rounds" in rehearsal.server_output


def test_agents_with_a_stock_node_and_the_local_engine_give_the_same_model(
    rehearsal: Rehearsal, tmp_path: Path
) -> None:
    assert same_model(rehearsal.state / "model.safetensors", local_model(tmp_path, ROUNDS))


def test_agents_and_nodes_that_are_told_to_stop_end_with_code_0(rehearsal: Rehearsal) -> None:
    assert rehearsal.client_codes == [0, 0, 0]


def test_leaving_leaves_no_process_behind(rehearsal: Rehearsal) -> None:
    assert rehearsal.leftovers == []


def test_K5_no_process_asks_for_anything_outside(rehearsal: Rehearsal) -> None:
    assert rehearsal.asked_outside == []


def test_K1_no_secret_of_the_superlink_is_readable_by_others(tmp_path: Path) -> None:
    with SuperLink(tmp_path / "home") as link:
        assert link.home.stat().st_mode & 0o077 == 0
        assert (link.home / "superexec.key").stat().st_mode & 0o077 == 0


def test_a_server_told_to_stop_says_so_and_leaves_no_process_behind(tmp_path: Path) -> None:
    """Also while it waits for sites, and also when somebody is impatient."""
    (tmp_path / "experiment.toml").write_text('name = "alone"\n')
    with contextlib.closing(Outside()) as outside:
        arguments = (
            "--insecure-loopback",
            str(tmp_path / "experiment.toml"),
            "--state",
            str(tmp_path / "state"),
            "--port",
            "0",
        )
        with _tacit(tmp_path, outside, "server", *arguments) as server:
            _wait_for((tmp_path / "state" / "flower" / "flower-superexec.log").exists)
            server.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=90) != 0
    assert still_running(tmp_path) == []


def test_a_server_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    (tmp_path / "experiment.toml").write_text('name = "alone"\n')
    with contextlib.closing(Outside()) as outside:
        arguments = (
            "--insecure-loopback",
            str(tmp_path / "experiment.toml"),
            "--state",
            str(tmp_path / "state"),
            "--port",
            "0",
        )
        with _tacit(tmp_path, outside, "server", *arguments) as server:
            _wait_for((tmp_path / "state" / "flower" / "flower-superexec.log").exists)
            server.kill()
            server.wait()
            _wait_for(lambda: still_running(tmp_path) == [])


def test_a_node_that_fails_says_so(tmp_path: Path) -> None:
    """Whatever listens at that address, it is no SuperLink."""
    with (
        contextlib.closing(Outside()) as outside,
        http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as stranger,
    ):
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{stranger.server_port}"
        (tmp_path / "site").mkdir()
        arguments = ("--insecure-loopback", "--site", str(tmp_path / "site"), "--superlink", address)
        with _tacit(tmp_path, outside, "client", "node", *arguments) as node:
            assert node.wait(timeout=90) == 1
        stranger.shutdown()
    assert still_running(tmp_path) == []


@pytest.fixture
def link(tmp_path: Path) -> Iterator[SuperLink]:
    with SuperLink(tmp_path / "flower", variables={"TACIT_STATE": str(tmp_path)}) as link:
        yield link


def test_a_run_that_fails_says_why(link: SuperLink, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"^federation\.sites: declares no sites\n"):
        submission.run(link, 'name = "nobody"\n', tmp_path, timeout=60)


def test_a_run_that_takes_too_long_is_stopped(link: SuperLink, tmp_path: Path) -> None:
    experiment = three_sites(tmp_path / "prepared").experiment  # and no node to take part
    with pytest.raises(RunFailed, match="no result after 3 s"):
        submission.run(link, experiment.to_toml(), tmp_path, timeout=3)
    (row,) = submission._flwr(link, "list", "tacit")["runs"]
    assert row["status"] == "finished:stopped"


def test_a_refused_submission_says_why(link: SuperLink) -> None:
    with pytest.raises(RunFailed, match=r"flwr run: .*"):
        submission.submit(link, "x", federation="no-such-key=1")


def test_a_superlink_that_dies_is_noticed(tmp_path: Path) -> None:
    with SuperLink(tmp_path / "home") as link:
        link._groups["flower-superlink"].leader.kill()
        with pytest.raises(RunFailed, match="flower-superlink ended with code -9"):
            _wait_for(lambda: link.check() is not None)


def _wait_for(condition: object, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)
