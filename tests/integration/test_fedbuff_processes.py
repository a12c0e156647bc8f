"""`fedbuff` in a real federation: rounds are under way at a time over the real SuperLink, and kills lose none."""

import os
import signal
from pathlib import Path

import pytest
from loopback import local_model, same_model
from secured import Federation, wait_for

from server.runs import Run
from server.state import read_rounds

SETTINGS = (
    "partition.num_clients=6", "strategy.name=fedbuff", "strategy.cohorts_at_once=2", "training.rounds=8",
    "secure_aggregation.deadline_seconds=60",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_a_round_does_not_wait_for_the_one_before_and_kills_lose_neither(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "secured", *SETTINGS)
    federation.start_all()
    try:
        run = check_overlap(federation)
        check_kills(federation, run)
    finally:
        codes = federation.stop()
    assert set(codes.values()) == {0}, federation.said()
    assert not list(run.folder.glob("attempt*")), "nothing is kept of sums that are made"
    assert same_model(run.folder / "model.safetensors", local_model(tmp_path / "local", *SETTINGS))


def check_overlap(federation: Federation) -> Run:
    """The second round's sum is there before the first one's, of which one site has stopped."""
    first = federation.labels[0]
    log, slow = federation.folder / f"{first}.log", federation.processes[first]
    wait_for(lambda: any(line.endswith("  connected") for line in log.read_text().splitlines()))
    slow.send_signal(signal.SIGSTOP)
    try:
        run = federation.submit(*SETTINGS)
        wait_for(lambda: (run.folder / "attempt" / "4.json").exists(), 120, federation.said)
        assert run.num_rounds == 0
    finally:
        slow.send_signal(signal.SIGCONT)
    return run


def check_kills(federation: Federation, run: Run) -> None:
    """Of the ServerApp, then of everybody."""
    federation.wait_rounds(run, 2)
    for pid in federation.pids("flwr-serverapp"):
        os.kill(pid, signal.SIGKILL)
    federation.wait_rounds(run, 4)
    for name in list(federation.processes):
        federation.kill(name)
    federation.start_all()
    federation.wait_end(run)
    assert run.status.state == "finished", federation.said()
    rows = read_rounds(run.folder / "rounds.jsonl")
    assert [row["round"] for row in rows] == list(range(1, 9))
