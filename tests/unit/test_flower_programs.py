"""What Flower's programs are started with, and that they end with us."""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

import client.cli
import server.processes
import server.superlink
from simulations import ray_engine
from tacit.errors import ConfigError, StorageError

ENVIRONMENTS = [client.cli.environment, server.superlink.environment]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_K5_every_environment_has_telemetry_update_check_and_installation_off(
    environment: Callable[[Path], dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "FLWR_HOME"):
        monkeypatch.setenv(name, "as the user has it")
    made = environment(tmp_path)
    assert made["FLWR_TELEMETRY_ENABLED"] == "0"
    assert made["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert made["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert made["FLWR_HOME"] == str(tmp_path)


def test_K5_flower_reads_these_switches() -> None:
    code = "from flwr.supercore import telemetry, update_check as u; print(telemetry.FLWR_TELEMETRY_ENABLED);"
    code += "u._request_flwr_update_check = lambda *_: print('asked'); u.warn_if_flwr_update_available('x')"
    made = server.superlink.environment(Path("/nowhere"))
    done = subprocess.run([sys.executable, "-c", code], env=made, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_flower_finds_its_programs_and_its_own_address(
    environment: Callable[[Path], dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    made = environment(tmp_path)
    assert made["PATH"].startswith(sysconfig.get_path("scripts") + os.pathsep)
    assert made["NO_PROXY"] == made["no_proxy"] == "intranet.example,127.0.0.1"


def test_a_ray_of_our_own_reports_nothing_and_wants_a_fresh_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    first, second = (ray_engine.ray_variables(tmp_path, tmp_path, "scratch") for _ in range(2))
    assert first["RAY_USAGE_STATS_ENABLED"] == "0"
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    monkeypatch.setenv("RAY_ADDRESS", "cluster.example:6379")
    assert "RAY_AUTH_TOKEN" not in ray_engine.ray_variables(tmp_path, tmp_path, "scratch")


@pytest.mark.parametrize("name", ["plain", "two words", "größe, 数据", "a=b", 'double"quote', "back\\slash"])
def test_G7_flower_reads_the_site_folder_back(name: str) -> None:
    site = Path("/sites") / name
    assert parse_config_args([client.cli.node_config(site)]) == {"site": str(site)}


def test_G7_a_path_that_flower_cannot_carry_is_refused() -> None:
    with pytest.raises(ConfigError, match="--site"):
        client.cli.node_config(Path("/sites/o'hara"))


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port: cannot listen on 127.0.0.1:{port}"):
            server.superlink.SuperLink(tmp_path, port=port)


def test_F5_a_second_server_in_the_same_folder_refuses(tmp_path: Path) -> None:
    with server.superlink._locked(tmp_path), pytest.raises(StorageError, match="another server works"):
        server.superlink.SuperLink(tmp_path).__enter__()
    assert not (tmp_path / "config.toml").exists()


STUBBORN = r"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
os.write(1, f"{os.getpid()}\n".encode())
time.sleep(600)
"""


def test_ending_a_group_ends_even_those_who_ignore_the_request() -> None:
    leader = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert leader.stdout is not None
    with leader.stdout:
        pids = [int(leader.stdout.readline()) for _ in range(2)]
    server.processes.end_group(leader, patience=0.2)  # type: ignore[arg-type]
    assert leader.returncode == -signal.SIGKILL
    assert not any(_runs(pid) for pid in pids)


def test_a_node_that_is_gone_leaves_none_of_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.cli, "STOP_SECONDS", 0.2)
    leader = subprocess.Popen(
        [sys.executable, "-c", STUBBORN.replace("os.fork()", "os.fork() and os._exit(0)")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert leader.stdout is not None
    with leader.stdout:
        rest = int(leader.stdout.readline())
    leader.wait()
    client.cli._end_rest(leader.pid)
    assert not _runs(rest)


def test_ending_a_group_gives_time_to_end_well() -> None:
    leader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    start = time.monotonic()
    server.processes.end_group(leader, patience=30)
    assert leader.returncode == -signal.SIGTERM
    assert time.monotonic() - start < 10


CLEARING_UP = """
import signal
from server.processes import interrupted_once
with interrupted_once():
    try:
        print("ready", flush=True)
        signal.pause()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        print("cleared up", flush=True)
"""


def test_sigterm_ends_a_program_through_its_finally_which_nobody_can_interrupt() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CLEARING_UP], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate()[0] == "cleared up\n"
    assert process.returncode == -signal.SIGINT


INTERRUPTED_START = """
import signal, subprocess, sys
from pathlib import Path
from server import superlink

class Popen(subprocess.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        print(self.pid, flush=True)
        signal.raise_signal(signal.SIGTERM)

superlink.subprocess.Popen = Popen
with superlink.SuperLink(Path(sys.argv[1])):
    pass
"""


def test_a_signal_while_a_process_starts_loses_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED_START, str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert not _runs(int(done.stdout))


def _runs(pid: int) -> bool:
    """Whether a process exists and is more than a zombie that nobody has waited for yet."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        time.sleep(0.05)
    return True
