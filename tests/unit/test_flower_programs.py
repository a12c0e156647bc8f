"""What Flower's programs are started with, and that they end with us."""

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

import client.node
import server.superlink
from simulations import ray_engine
from tacit.config import Ray
from tacit.errors import ConfigError, StorageError
from tacit.processes import Group, flower_environment


def test_K5_every_environment_has_telemetry_update_check_and_installation_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "FLWR_HOME"):
        monkeypatch.setenv(name, "as the user has it")
    made = flower_environment(tmp_path)
    assert made["FLWR_TELEMETRY_ENABLED"] == "0"
    assert made["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert made["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert made["FLWR_HOME"] == str(tmp_path)


def test_K5_flower_reads_these_switches() -> None:
    code = "from flwr.supercore import telemetry, update_check as u; print(telemetry.FLWR_TELEMETRY_ENABLED);"
    code += "u._request_flwr_update_check = lambda *_: print('asked'); u.warn_if_flwr_update_available('x')"
    made = flower_environment(Path("/nowhere"))
    done = subprocess.run([sys.executable, "-c", code], env=made, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


def test_flower_finds_its_programs_and_its_own_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    made = flower_environment(tmp_path)
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
    monkeypatch.delenv("RAY_ADDRESS")
    named = ray_engine.ray_variables(tmp_path, tmp_path, "scratch", "other.example:6379")
    assert named["RAY_ADDRESS"] == "other.example:6379"
    handed = json.loads(named["RAY_JOB_CONFIG_JSON_ENV_VAR"])["runtime_env"]["env_vars"]
    assert handed["TACIT_SITES"] == str(tmp_path)  # a cluster's workers do not have our environment
    assert "RAY_AUTH_TOKEN" not in named


def test_what_a_client_gets_of_ray_is_the_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    shared = Ray(cpus_per_client=2, gpus_per_client=0.25)
    text = "num-supernodes=3 client-resources-num-cpus=2 client-resources-num-gpus=0.25"
    assert ray_engine._federation(3, shared) == f"{text} init-args-num-cpus=6"
    assert ray_engine._federation(3, shared.model_copy(update={"address": "there:1"})) == text


@pytest.mark.parametrize("name", ["plain", "two words", "größe, 数据", "a=b", 'double"quote', "back\\slash"])
def test_G7_flower_reads_the_site_folder_back(name: str) -> None:
    site = Path("/sites") / name
    assert parse_config_args([client.node.node_config(site)]) == {"site": str(site)}


def test_G7_a_path_that_flower_cannot_carry_is_refused() -> None:
    with pytest.raises(ConfigError, match="--site"):
        client.node.node_config(Path("/sites/o'hara"))


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
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() and "leader-goes" in sys.argv:
    sys.exit()
os.write(1, f"{os.getpid()}\n".encode())
time.sleep(600)
"""


def _group(output: Path, program: str, *arguments: str, patience: float) -> Group:
    command = [sys.executable, "-c", program, *arguments]
    with output.open("wb") as file:
        return Group(command, environment=os.environ, folder=output.parent, output=file, patience=patience)


def _pids(output: Path, number: int) -> list[int]:
    """What so many processes have written about themselves."""
    deadline = time.monotonic() + 60
    while len(lines := output.read_text().splitlines() if output.exists() else []) < number:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(line) for line in lines]


def test_ending_a_group_ends_even_those_who_ignore_the_request(tmp_path: Path) -> None:
    with _group(tmp_path / "pids", STUBBORN, patience=0.2) as group:
        pids = _pids(tmp_path / "pids", 2)
    assert group.leader.returncode == -signal.SIGKILL
    assert not any(_runs(pid) for pid in pids)


def test_a_program_that_nobody_could_watch_over_is_not_left_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process more can be started, say; another Python that there is not stands for it."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    monkeypatch.setattr("tacit.processes.sys.executable", str(tmp_path / "no-such-program"))
    with pytest.raises(FileNotFoundError):
        Group(command, environment=os.environ, folder=tmp_path)
    assert children.read_text() == before


def test_a_node_that_is_gone_leaves_none_of_its_processes(tmp_path: Path) -> None:
    with _group(tmp_path / "pids", STUBBORN, "leader-goes", patience=0.2) as group:
        assert group.leader.wait() == 0
        (rest,) = _pids(tmp_path / "pids", 1)
    assert not _runs(rest)


def test_ending_a_group_gives_time_to_end_well(tmp_path: Path) -> None:
    start = time.monotonic()
    with _group(tmp_path / "pids", "import time; time.sleep(600)", patience=120) as group:
        pass
    assert group.leader.returncode == -signal.SIGTERM
    assert time.monotonic() - start < 60


KILLED = f"""
import os, sys, time
from pathlib import Path
from tacit.processes import Group
command = [sys.executable, "-c", {STUBBORN!r}]
with Path("pids").open("wb") as file:
    group = Group(command, environment=os.environ, folder=Path("."), output=file, patience=0.2)
with group:
    time.sleep(600)
"""


def test_a_group_ends_too_when_its_owner_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path)
    pids = _pids(tmp_path / "pids", 2)
    assert _runs(pids[0], seconds=0.1)
    owner.kill()
    owner.wait()
    assert not any(_runs(pid) for pid in pids)


CLEARING_UP = """
import signal
from tacit.processes import interrupted_once
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
from tacit import processes

class Popen(subprocess.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        print(self.pid, flush=True)
        signal.raise_signal(signal.SIGTERM)

processes.subprocess.Popen = Popen
with superlink.SuperLink(Path(sys.argv[1])):
    pass
"""


def test_a_signal_while_a_process_starts_loses_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED_START, str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert not any(_runs(int(pid)) for pid in done.stdout.split())


def _runs(pid: int, seconds: float = 60) -> bool:
    """Whether a process, after so long, still exists and is more than a zombie that nobody has waited for yet."""
    deadline = time.monotonic() + seconds
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
