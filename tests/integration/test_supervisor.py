"""A server that is killed, in whole or in part, loses nothing: real SuperLink, TLS, node keys, agents and `kill -9`."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from killing.sitecustomize import POINTS
from loopback import local_model, same_model, still_running
from secured import Federation, wait_for

from server.runs import Run
from server.serving import listening_host
from server.state import read_rounds

pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    federation = Federation(tmp_path_factory.mktemp("secured"))
    federation.start_all()
    yield federation
    codes = federation.stop()
    assert still_running(federation.folder) == [], "who is told to stop leaves no process behind"
    assert set(codes.values()) == {0}, federation.said()


def check_whole(
    federation: Federation, run: Run, folder: Path, *overrides: str, seconds: float = 800
) -> None:
    """Every round once, and the model that nobody's kill has touched."""
    federation.wait_end(run, seconds)
    assert run.status.state == "finished", federation.said()
    rounds = [row["round"] for row in read_rounds(run.folder / "rounds.jsonl")]
    assert rounds == list(range(1, run.status.rounds + 1))
    assert same_model(run.folder / "model.safetensors", local_model(folder, *overrides))


def with_points(federation: Federation, folder: Path, names: Sequence[str]) -> None:
    """One kill in each round, and one before the result for each time that it is named."""
    within = [name for name in names if name != "before-result"]
    rounds = f"training.rounds={len(within) + 1}"
    for number, name in enumerate(within):
        (federation.points / f"{number:03d}-{name}").touch()
    for i in range(len(names) - len(within)):
        (federation.points / f"{len(within):03d}-before-result.{i}").touch()
    run = federation.submit(rounds)
    check_whole(federation, run, folder, rounds, seconds=60 * len(names))
    assert list(federation.points.iterdir()) == [], "every point was reached"


def test_D1_the_serverapp_killed_in_each_stage_of_a_round_loses_no_round(
    federation: Federation, tmp_path: Path
) -> None:
    """And the model is bit-equal to that of a run without kills. (test_crashes.py kills at each point.)"""
    stages = ["attempt-noted", "before-confirmations", "receipt-kept", "checkpoint-half", "before-result"]
    with_points(federation, tmp_path, stages)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_D1_the_serverapp_killed_three_times_at_each_named_point(
    federation: Federation, tmp_path: Path
) -> None:
    with_points(federation, tmp_path, list(POINTS) * 3)


ROUNDS = "training.rounds=8"


def test_D4_superlink_server_and_both_sides_killed_lose_no_round(
    federation: Federation, tmp_path: Path
) -> None:
    """Each once while a run is at work: SuperLink, executor, server, one site, everything."""
    run = federation.submit(ROUNDS)
    federation.wait_rounds(run, 1)
    federation.kill_program("flower-superlink")
    federation.wait_rounds(run, 2)
    federation.kill_program("flower-superexec")
    federation.wait_rounds(run, 3)
    federation.kill("server")
    federation.start("server")  # at once: whatever is left of the first is in its way
    federation.wait_rounds(run, 4)
    federation.kill(federation.labels[0])
    federation.start(federation.labels[0])
    federation.wait_rounds(run, 6)
    for name in list(federation.processes):
        federation.kill(name)
    wait_for(lambda: still_running(federation.folder) == [])
    federation.start_all()
    check_whole(federation, run, tmp_path, ROUNDS)


def test_a_run_is_stopped_and_resumed(federation: Federation, tmp_path: Path) -> None:
    run = federation.submit("training.rounds=4")
    federation.wait_rounds(run, 1)
    run.ask_to_stop()
    federation.wait_end(run)
    assert run.status.state == "stopped"
    wait_for(lambda: federation.pids("flwr-serverapp") == [], 30)
    assert 1 <= run.num_rounds < 4
    federation.queue.resume(run)
    check_whole(federation, run, tmp_path, "training.rounds=4")


def test_nothing_but_the_front_listens_on_an_address_that_others_can_reach(federation: Federation) -> None:
    """All of it is on loopback here; the front because the sites dial localhost."""
    wait_for(lambda: federation.pids("flower-superexec") != [])
    listening = federation.listening()
    assert set(listening.values()) == {"127.0.0.1"}
    front = federation.kit.federation.port
    assert front in listening
    assert listening_host("federation.example.org") == "0.0.0.0"
    assert len(listening) == 2, "the SuperLink is the other one"


def test_K10_a_crash_of_a_server_or_a_site_leaves_no_core(federation: Federation) -> None:
    wait_for(lambda: federation.pids("flower-superlink") != [])
    processes = [process.pid for process in federation.processes.values()]
    for pid in (*processes, *federation.pids("flower-superlink")):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "Max core file size 0 0" in " ".join(limits.split())


def test_F5_a_second_server_on_the_kit_refuses(federation: Federation) -> None:
    import subprocess

    from secured import TACIT

    wait_for(lambda: federation.pids("flower-superlink") != [])
    done = subprocess.run(
        [TACIT, "server", "--kit", str(federation.kit.folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "STARTED_BY_TEST": str(federation.folder)},
    )
    assert done.returncode == 1
    assert "another server is working here" in done.stderr


def test_a_site_that_has_lost_its_server_says_so_and_waits(federation: Federation) -> None:
    wait_for(lambda: federation.pids("flower-superlink") != [])
    federation.processes["server"].send_signal(signal.SIGTERM)
    assert federation.processes.pop("server").wait(timeout=60) == 0
    assert federation.pids("flower-superlink") == []
    assert all(federation.processes[label].poll() is None for label in federation.labels)
    federation.start("server")
    wait_for(lambda: federation.pids("flower-superlink") != [])
