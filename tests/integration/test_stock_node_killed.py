"""A stock Flower node that is killed while a run goes on, among agents: the run goes on without it or with it."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import pytest
from loopback import Outside, still_running, three_sites
from test_processes import _port, _tacit, _wait_for

from client.site import Site
from server.state import read_rounds

pytestmark = [pytest.mark.processes, pytest.mark.slow]

ROUNDS = 8
OVERRIDES = (
    "partition.num_clients=4",
    "secure_aggregation.max_dropouts=1",
    "secure_aggregation.deadline_seconds=20.0",
    f"training.rounds={ROUNDS}",
)


def test_D4_a_stock_node_killed_alone_loses_no_round(tmp_path: Path) -> None:
    prepared = three_sites(tmp_path, *OVERRIDES)
    experiment = prepared.folder / "experiment.toml"
    experiment.write_text(prepared.experiment.to_toml())
    port, state = _port(), tmp_path / "state"
    superlink = ("--superlink", f"127.0.0.1:{port}")

    def rounds() -> int:
        return len(read_rounds(state / "rounds.jsonl"))

    with contextlib.closing(Outside()) as outside, contextlib.ExitStack() as stack:
        for i in range(3):
            site = ("run", str(prepared.folder / str(i)), "--insecure-loopback", *superlink)
            stack.enter_context(_tacit(tmp_path, outside, "client", *site))
        stock = ("node", "--insecure-loopback", "--site", str(prepared.folder / "3"), *superlink)
        node = stack.enter_context(_tacit(tmp_path, outside, "client", *stock))
        arguments = ("--insecure-loopback", str(experiment), "--state", str(state), "--port", str(port))
        server = stack.enter_context(_tacit(tmp_path, outside, "server", *arguments))
        _wait_for(lambda: rounds() >= 2 or server.poll() is not None, 280)
        time.sleep(1)  # it is within a round then
        node.send_signal(signal.SIGKILL)
        node.wait()
        _wait_for(lambda: not any("flower-supernode" in line for line in still_running(tmp_path)))
        stack.enter_context(_tacit(tmp_path, outside, "client", *stock))
        assert server.wait(timeout=280) == 0, (tmp_path / "server.log").read_text()
    made = read_rounds(state / "rounds.jsonl")
    assert [row["round"] for row in made] == list(range(1, ROUNDS + 1))
    assert all({"site-1", "site-2", "site-3"} <= set(row["survivors"]) for row in made)
    with Site.open(prepared.folder / "3").ledger() as ledger:
        assert ledger.entries, "what it sent before it was killed is paid"
    assert still_running(tmp_path) == []
