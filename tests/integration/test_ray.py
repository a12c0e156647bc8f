"""The Ray engine: the same apps through Flower's own simulation runtime."""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Outside, local_model, same_model, still_running, three_sites

from simulations import ray_engine
from tacit.config import Ray
from tacit.errors import RunFailed

pytestmark = pytest.mark.ray

RAY = Path(sys.executable).with_name("ray")
METADATA_SERVICES = (b"GET http://169.254.169.254/", b"GET http://metadata.google.internal/")


def test_an_experiment_runs_on_ray_and_gives_the_model_of_the_local_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    prepared, state, polls = three_sites(tmp_path), tmp_path / "state", []
    with contextlib.closing(Outside()) as outside:
        for name, value in outside.variables.items():
            monkeypatch.setenv(name, value)
        ray_engine.run(
            prepared.experiment.to_toml(),
            state=state,
            sites=prepared.folder,
            num_clients=3,
            on_poll=lambda: polls.append((state / "rounds.jsonl").exists()),
            timeout=240,
        )
    # K5. Ray looks for a cloud's metadata service, which no setting turns off, and tells it nothing.
    assert [request for request in outside.requests if not request.startswith(METADATA_SERVICES)] == []
    assert (state / "result.json").exists()
    assert [json.loads(line)["round"] for line in (state / "rounds.jsonl").read_text().splitlines()] == [1, 2]
    assert same_model(state / "model.safetensors", local_model(tmp_path / "local"))
    assert polls[0] is False
    assert polls[-1] is True
    assert still_running(tmp_path) == []


def test_a_simulation_that_takes_too_long_ends_with_all_of_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    prepared = three_sites(tmp_path, "training.rounds=100000")
    with pytest.raises(RunFailed, match="no result after 12 s"):
        ray_engine.run(
            prepared.experiment.to_toml(),
            state=tmp_path / "state",
            sites=prepared.folder,
            num_clients=3,
            timeout=12,
        )
    assert still_running(tmp_path) == []


@pytest.mark.slow
def test_an_experiment_runs_on_a_cluster_that_is_there_and_leaves_it_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of one core each, on one machine; each holds some of the sites."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    prepared, state = three_sites(tmp_path), tmp_path / "state"
    with cluster(num_nodes=2) as (address, folder):
        ray_engine.run(
            prepared.experiment.to_toml(),
            state=state,
            sites=prepared.folder,
            num_clients=3,
            settings=Ray(address=address),
            timeout=240,
        )
        actors = [
            log for log in folder.glob("session_2*/logs/worker-*.out") if "ClientAppActor" in log.read_text()
        ]
        assert len(actors) == 2, "the sites were not trained on it"
        assert num_free_cores(address) == 2, "the cluster is still there, and nobody uses it"
    assert same_model(state / "model.safetensors", local_model(tmp_path / "local"))
    assert still_running(tmp_path) == []


@contextlib.contextmanager
def cluster(num_nodes: int) -> Iterator[tuple[str, Path]]:
    """A Ray cluster with a core to each node; its address and where it writes its logs."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as folder,  # a socket's path has 107 bytes at most
        contextlib.ExitStack() as stack,
    ):
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        head = [
            "--head",
            f"--port={address.split(':')[1]}",
            f"--temp-dir={folder}",
            "--include-dashboard=false",
        ]
        for node in range(num_nodes):
            where = ["--node-ip-address=127.0.0.1", *(head if not node else [f"--address={address}"])]
            command = [RAY, "start", "--block", "--num-cpus=1", "--disable-usage-stats", *where]
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.terminate)
            wait_for_cores(address, node + 1)
        yield address, Path(folder)


def wait_for_cores(address: str, count: int) -> None:
    deadline = time.monotonic() + 90
    while num_free_cores(address) < count:
        assert time.monotonic() < deadline, "the cluster does not come up"


def num_free_cores(address: str) -> int:
    """As a process of its own sees it; 0 while the cluster cannot be reached."""
    script = (
        f"import ray; ray.init({address!r}); print('free:', int(ray.available_resources().get('CPU', 0)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return int(done.stdout.split("free:")[1]) if "free:" in done.stdout else 0
