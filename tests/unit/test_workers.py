"""A cohort trained by worker processes: for each client what it gets here, and nothing left behind."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from client.participant import Run
from client.training import Job
from simulations import stacked, workers
from simulations.cohort import CohortExecutor
from simulations.workers import WorkersTrainer, close_pools
from tacit.errors import ConfigError
from tacit.privacy.noise import SeededKeys
from tacit.tasks import Records
from tacit.tasks.weights import initial_arrays
from tests.unit.client_sites import RECORD, experiment
from tests.unit.small_federation import PRIVATE as PRIVATE_RUN
from tests.unit.small_federation import Federation, ledger_entries, same

KEYS = SeededKeys(5)
SIZES = (30, 1, 0, 7, 55)  # one record, or none: batches of many sizes, some of them empty
TASK = {"kind": "tests.unit.image_task:Images"}
PRIVATE = {"privacy__record": {**RECORD, "max_grad_norm": 0.3}}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    close_pools()


def jobs(sizes=SIZES):
    rng = np.random.default_rng(0)
    return [
        Job(
            f"site-{i}",
            Records(
                torch.from_numpy(rng.normal(size=(n, 6, 6)).astype(np.float32) * (i + 1)),
                torch.from_numpy(rng.integers(0, 3, n)),
            ),
            declared_rows=20 + i,
        )
        for i, n in enumerate(sizes)
    ]


def run(private=True, **changes):
    return Run(experiment(private, task=TASK, **(PRIVATE if private else {}), **changes).to_toml())


def arrays(of, seed=1):
    return initial_arrays(of.task, private=True, seed=seed)


def train(trainer, model, job, number=2):
    return trainer.train(model, job, number, KEYS)


def assert_same(got, wanted):
    assert list(got) == list(wanted)
    for name, values in wanted.items():
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], values, err_msg=name)


@pytest.mark.parametrize("private", [True, False], ids=["private", "not private"])
def test_the_result_of_a_client_is_that_of_local_training_bit_for_bit(private, monkeypatch):
    """Noise, Poisson draws and dropout included; over two rounds with other models, in another order."""
    of = run(private)
    pooled = WorkersTrainer.of(of, 0.0)
    for number in (1, 2):
        model = arrays(of, seed=number)
        alone = [train(of.trainer, model, job, number) for job in jobs()]
        pooled.train_ahead(model, jobs(), number, KEYS)
        with monkeypatch.context() as patch:
            patch.setattr(workers.LocalTrainer, "train", None)  # none is trained here
            ahead = [train(pooled, model, job, number) for job in jobs()[::-1]][::-1]
        for got, wanted in zip(ahead, alone, strict=True):
            assert_same(got, wanted)


def test_what_was_trained_ahead_from_another_model_or_nobody_asked_for_is_not_handed_over():
    of = run()
    pooled, model = WorkersTrainer.of(of, 0.0), arrays(of)
    pooled.train_ahead(model, jobs(), 1, KEYS)
    other = arrays(of, seed=2)
    assert_same(train(pooled, other, jobs()[0], 1), train(of.trainer, other, jobs()[0], 1))
    pooled.train_ahead(other, jobs()[:2], 2, KEYS)
    assert_same(train(pooled, other, jobs()[4], 2), train(of.trainer, other, jobs()[4], 2))
    assert_same(train(pooled, other, jobs()[1], 2), train(of.trainer, other, jobs()[1], 2))


def test_what_goes_wrong_with_a_client_is_met_here_and_the_others_are_trained():
    of = run()
    pooled, model, cohort = WorkersTrainer.of(of, 0.0), arrays(of), jobs()
    cohort[4].records.targets[:] = 99
    pooled.train_ahead(model, cohort, 1, KEYS)
    with pytest.raises(ArithmeticError, match="a class that is not there"):
        train(pooled, model, cohort[4], 1)
    assert_same(train(pooled, model, cohort[0], 1), train(of.trainer, model, cohort[0], 1))


def test_a_worker_that_is_killed_costs_time_alone(caplog):
    of = run()
    pooled, model = WorkersTrainer.of(of, 0.0), arrays(of)
    pooled.train_ahead(model, jobs(), 1, KEYS)
    train(pooled, model, jobs()[0], 1)
    os.kill(next(iter(pooled._pool._workers.values())).pid, signal.SIGKILL)
    with caplog.at_level(logging.WARNING, logger="simulations.workers"):
        pooled.train_ahead(model, jobs(), 2, KEYS)
        ahead = [train(pooled, model, job, 2) for job in jobs()]
    assert "executor serial: a worker has ended (exit code -9)" in caplog.text
    for got, job in zip(ahead, jobs(), strict=True):
        assert_same(got, train(of.trainer, model, job, 2))


SCRIPT = """
import signal, sys, time
from tests.unit import test_workers as t
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background has switched off
    of = t.run()
    pooled = t.WorkersTrainer.of(of, 0.0)
    pooled.train_ahead(t.arrays(of), t.jobs([400] * 400), 1, t.KEYS)
    t.train(pooled, t.arrays(of), t.jobs([400] * 400)[0], 1)
    print(*(p.pid for p in pooled._pool._workers.values()), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(ending, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd=root,
        env={**os.environ, "PYTHONPATH": root}, start_new_session=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == workers.num_workers()
        (os.killpg if ending == signal.SIGINT else os.kill)(
            parent.pid, ending
        )  # Ctrl-C is for the whole group
        parent.wait(30)
        deadline = time.monotonic() + 30
        while any(alive(pid) for pid in pids):
            assert time.monotonic() < deadline, "a worker is still there"
            time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_auto_waits_until_training_takes_long_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(workers, "num_workers", lambda: 2)
    of = run()
    with caplog.at_level(logging.INFO):
        assert stacked.executor_for(of, 5) == "workers"
        of.trainer.train_ahead(arrays(of), jobs(), 1, KEYS)
        assert of.trainer._pool is None
        of.trainer.patience = 1e-9
        train(of.trainer, arrays(of), jobs()[0], 1)
        of.trainer.train_ahead(arrays(of), jobs(), 2, KEYS)
        assert of.trainer._pool is not None
    assert "workers after 5 s of training: the model is not a plain stack" in caplog.text
    assert "executor workers: 2 processes" in caplog.text


def test_workers_are_demanded_and_refused_by_name(monkeypatch):
    assert stacked.executor_for(run(simulation__executor="workers"), 5) == "workers"
    monkeypatch.setattr(workers, "num_workers", lambda: 1)
    assert stacked.executor_for(run(), 5) == "serial"
    with pytest.raises(ConfigError, match="there is one core"):
        stacked.executor_for(run(simulation__executor="workers"), 5)


def hooks(name, cohorts):
    return {"workers": {"executor": cohorts}, "ahead": {"ahead": stacked.train_ahead}}.get(name, {})


def test_a_run_is_the_serial_one_bit_for_bit_and_each_site_pays_once_for_a_round(tmp_path: Path):
    """Privacy, dropout, a site that refuses: through the hook of the grid and through messages."""
    models, entries = [], []
    for name in ("serial", "workers", "ahead"):
        executor = "serial" if name == "serial" else "workers"
        federation = Federation(
            tmp_path / name, PRIVATE_RUN, "insecure_seeded_noise=true", "secure_aggregation.engine=ideal",
            "task.kind=tests.unit.test_stacked:WithDropout", f"simulation.executor={executor}",
        )  # fmt: skip
        policy = federation.sites / "2" / "policy.toml"
        policy.write_text(policy.read_text() + "epsilon_ceiling = 0.01\ndelta = 1e-5\n")
        with (
            CohortExecutor() as cohorts,
            federation.rounds(tmp_path / name / "run", **hooks(name, cohorts)) as rounds,
        ):
            models.append(rounds.run(federation.initial()).arrays)
            assert rounds.grid.facts.refusals == {"budget": 1}
        entries.append([ledger_entries(federation.sites / str(i)) for i in range(6)])
    assert same(models[0], models[1]) and same(models[0], models[2])
    assert entries == [[3, 3, 0, 3, 3, 3]] * 3
