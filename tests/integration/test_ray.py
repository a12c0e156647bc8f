"""The Ray engine: the same apps through Flower's own simulation runtime."""

import contextlib
import json
from pathlib import Path

import pytest
from loopback import Outside, local_model, same_model, still_running, three_sites

from simulations import ray_engine
from tacit.errors import RunFailed

pytestmark = pytest.mark.ray

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
