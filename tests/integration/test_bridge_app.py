"""The app of the bridge's page, with its two lines, in Flower's own simulation: bundle, SuperLink, Ray."""

import shutil
import tempfile
import time
from pathlib import Path

import pytest
import tomli_w
import torch
from loopback import still_running

from server import submission
from server.superlink import SuperLink
from simulations.bridge import make_federation
from simulations.ray_engine import ray_variables
from tests.unit.bridged_app import APP, page_terms, run_app, with_the_lines

pytestmark = pytest.mark.ray

FEDERATION = "num-supernodes=3 client-resources-num-cpus=1 init-args-num-cpus=3"


def test_the_page_s_app_runs_in_flowers_simulation_and_gives_the_model_that_it_gives_without_the_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("before", "after"):
        shutil.copytree(APP, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with_the_lines(tmp_path / "after")
    make_federation(tmp_path / "federation", page_terms(), (1, 1, 1))
    model, overrides = tmp_path / "after.pt", tmp_path / "overrides.toml"
    overrides.write_text(tomli_w.dumps({"model": str(model), "num-server-rounds": 1}))
    # Ray's sockets lie in this folder, and a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="tacit-ray-", ignore_cleanup_errors=True) as scratch:
        variables = ray_variables(tmp_path / "state", tmp_path / "federation", scratch)
        with SuperLink(tmp_path / "flower", simulation=True, variables=variables) as link:
            source = (str(tmp_path / "after"), "tacit", "-c", str(overrides))
            run_id = int(submission._flwr(link, "run", *source, "--federation-config", FEDERATION)["run-id"])
            deadline = time.monotonic() + 120
            while not model.exists():
                now = submission.status(link, run_id)
                assert not now.has_ended or model.exists(), submission.log_tail(link, run_id, 40)
                assert time.monotonic() < deadline, submission.log_tail(link, run_id, 40)
                time.sleep(0.5)
            while not submission.status(link, run_id).has_ended:
                assert time.monotonic() < deadline
                time.sleep(0.5)
            assert submission.status(link, run_id).status == "finished:completed"
            said = submission.log_tail(link, run_id, 200)
    assert "eval_acc" in said  # a sum of its own
    run_app(tmp_path / "before", tmp_path / "before.pt", **{"num-server-rounds": 1})
    before, after = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("before", "after"))
    for name in set(before) - {"norm.num_batches_tracked"}:
        assert (before[name] - after[name]).abs().max() < 0.002, name
    assert still_running(tmp_path) == []
