"""K5: no telemetry, and no connection to the outside."""

import ast
import os
import socket
import subprocess
import sys
import sysconfig
import urllib.request
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, modules, tree
from tests.network_guard import outside

SITECUSTOMIZE = """
import os
from tests import network_guard
def report(line):
    with open({path!r}, "a") as file:
        file.write(line + chr(10))
network_guard.watch(report)
"""


@pytest.mark.parametrize(
    ("event", "argument", "host"),
    [
        ("socket.connect", ("93.184.216.34", 443), "93.184.216.34"),
        ("socket.connect", ("2606:2800:220:1::1", 443, 0, 0), "2606:2800:220:1::1"),
        ("socket.connect", ("10.0.0.7", 80), "10.0.0.7"),
        ("socket.sendto", ("8.8.8.8", 53), "8.8.8.8"),
        ("socket.connect", ("127.0.0.1", 80), None),
        ("socket.connect", ("::1", 80, 0, 0), None),
        ("socket.connect", "/run/socket", None),
        ("socket.sendmsg", None, None),
        ("socket.bind", ("93.184.216.34", 443), None),
    ],
)
def test_K5_an_address_outside_is_known(event: str, argument: object, host: str | None) -> None:
    assert outside(event, (None, argument)) == host


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("telemetry.example", "telemetry.example"),
        (b"telemetry.example", "telemetry.example"),
        ("127.0.0.1", None),
        ("localhost", None),
        (None, None),
    ],
)
def test_K5_a_name_outside_is_known(name: object, host: str | None) -> None:
    assert outside("socket.getaddrinfo", (name, 443, 0, 0, 0)) == host


def test_K5_a_test_that_asks_outside_is_stopped(
    asked_outside: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)
    with socket.socket() as probe, pytest.raises(PermissionError, match=r"203\.0\.113\.1"):
        probe.connect(("203.0.113.1", 80))
    with pytest.raises(OSError, match=r"telemetry\.example"):
        urllib.request.urlopen("http://telemetry.example/", timeout=1)
    assert asked_outside == ["socket.connect 203.0.113.1", "socket.getaddrinfo telemetry.example"]
    asked_outside.clear()


def test_K5_a_connection_on_this_machine_is_let_through() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
    ):
        assert ours.getpeername() == server.getsockname()


def test_K5_a_simulation_asks_for_nothing_outside(tmp_path: Path) -> None:
    asked = tmp_path / "asked.txt"
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE.format(path=str(asked)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    probe = [sys.executable, "-c", "import socket; socket.socket().connect(('203.0.113.1', 80))"]
    assert subprocess.run(probe, env=environment, capture_output=True, check=False).returncode == 1
    assert asked.read_text() == "socket.connect 203.0.113.1\n"
    asked.unlink()

    scenario = str(ROOT / "simulations/scenarios/breast_cancer.toml")
    changes = ["training.rounds=1", "simulation.baselines=false"]
    command = [str(Path(sysconfig.get_path("scripts")) / "tacit"), "simulate", scenario, "--quiet"]
    command += ["--out", str(tmp_path / "out"), *(part for change in changes for part in ("--set", change))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.json").exists()
    assert not asked.exists(), asked.read_text()


def test_K5_telemetry_is_off_whatever_the_user_has_set() -> None:
    code = "import tacit.cli; from flwr.supercore import telemetry as t; print(t.FLWR_TELEMETRY_ENABLED)"
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "1", "FLWR_DISABLE_UPDATE_CHECK": "0"}
    code += "; import os; print(os.environ['FLWR_DISABLE_UPDATE_CHECK'])"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]


def test_K5_every_program_is_started_with_an_environment_of_our_making() -> None:
    """Which `test_K5_every_environment_has_...` then looks into.

    `tacit doctor` starts Python only, in the environment in which `tacit.cli` has switched telemetry off.
    """
    without = []
    for path in sorted(set(modules()) - {"tacit/doctor.py"}):
        for node in ast.walk(tree(path)):
            started = isinstance(node, ast.Call) and ast.unparse(node.func).startswith(
                ("subprocess.", "os.spawn")
            )
            if started and "env" not in {keyword.arg for keyword in node.keywords}:
                without.append(f"{path}:{node.lineno}")
    assert without == []
