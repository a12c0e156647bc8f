"""A coordinator and three sites on hosts of their own: network namespaces, with cables that can be pulled."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loopback import local_model, same_model, still_running
from secured import Federation, wait_for

from server.state import read_rounds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

COORDINATOR = "10.77.0.1"  # within the namespaces only
ROUNDS = "training.rounds=3"


def ip(*arguments: str) -> bool:
    """Whether iproute2 could do it."""
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0


def check_namespaces() -> None:
    """Skips the test where this machine, or this user, may not make a network."""
    if shutil.which("ip") is None:
        pytest.skip("needs the program ip: apt-get install iproute2")
    name = f"tacit-probe-{os.getpid()}"
    if not ip("netns", "add", name):
        pytest.skip("needs the right to make network namespaces: run as root, or with CAP_SYS_ADMIN")
    ip("netns", "delete", name)


class Hosts:
    """One namespace for the server and one for each site, and a cable from the server to each site."""

    def __init__(self, sites: list[str]) -> None:
        self._names = {name: f"tacit-{os.getpid()}-{name}" for name in ("server", *sites)}
        self._sites = sites

    def __enter__(self) -> Hosts:
        for host in self._names.values():
            assert ip("netns", "add", host)
            assert ip("-n", host, "link", "set", "lo", "up")
        server = self._names["server"]
        assert ip("-n", server, "address", "add", f"{COORDINATOR}/32", "dev", "lo")
        for i, site in enumerate(self._sites, start=1):
            host, here, there = self._names[site], f"10.77.{i}.1", f"10.77.{i}.2"
            assert ip("-n", server, "link", "add", f"to-{i}", "type", "veth", "peer", "eth0", "netns", host)
            for name, end, address in ((server, f"to-{i}", here), (host, "eth0", there)):
                assert ip("-n", name, "address", "add", f"{address}/30", "dev", end)
                assert ip("-n", name, "link", "set", end, "up")
            assert ip("-n", host, "route", "add", COORDINATOR, "via", here)
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._names.values():
            ip("netns", "delete", host)

    def on(self, name: str) -> list[str]:
        """What a command begins with that runs on that host."""
        return ["ip", "netns", "exec", self._names[name]]

    @contextmanager
    def pulled(self, site: str) -> Iterator[None]:
        """Within it, no packet passes between the server and this site."""
        server, host = self._names["server"], self._names[site]
        end, there = f"to-{self._sites.index(site) + 1}", f"10.77.{self._sites.index(site) + 1}.1"
        assert ip("-n", server, "link", "set", end, "down")
        yield
        assert ip("-n", server, "link", "set", end, "up")
        ip("-n", host, "route", "replace", COORDINATOR, "via", there)  # a route may go with its cable


class Distributed(Federation):
    """Each on its host."""

    def __init__(self, folder: Path, hosts: Hosts) -> None:
        super().__init__(folder, address=f"{COORDINATOR}:9443")
        self._hosts = hosts

    def host(self, name: str) -> list[str]:
        return self._hosts.on(name)


def test_a_cable_that_is_pulled_in_a_round_and_put_back_costs_no_round(tmp_path: Path) -> None:
    """Every site is in every sum, and the model is that of a run on one machine."""
    check_namespaces()
    with Hosts(["site-1", "site-2", "site-3"]) as hosts:
        federation = Distributed(tmp_path / "federation", hosts)
        federation.start_all()
        try:
            run = federation.submit(ROUNDS)
            session = tmp_path / "federation" / "kits" / "site-3" / "sessions" / "round"
            wait_for(lambda: session.exists() or run.status.has_ended, told=federation.said)
            with hosts.pulled("site-3"):
                complete = run.num_rounds
                time.sleep(6)
                assert run.num_rounds <= complete + 1, "a round was complete without a site that it needs"
            federation.wait_end(run, 1000)
        finally:
            codes = federation.stop()
        assert run.status.state == "finished", federation.said()
        rounds = read_rounds(run.folder / "rounds.jsonl")
        assert [row["round"] for row in rounds] == [1, 2, 3]
        assert all(len(row["survivors"]) == 3 for row in rounds)
        assert same_model(run.folder / "model.safetensors", local_model(tmp_path / "local", ROUNDS))
        assert set(codes.values()) == {0}
        assert still_running(federation.folder) == []
