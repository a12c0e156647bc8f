"""The hook that trains a whole cohort: the serial path's sum, its debits and its refusals."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.site import Site
from server.state import RunState
from simulations import cohort
from simulations.cohort import CohortExecutor
from tacit.errors import StorageError
from tacit.privacy.ledger import Ledger
from tacit.secagg.client_encoder import ClientLevelEncoder
from tacit.secagg.encoder import Encoder
from tacit.tasks.tabular import TabularClassification
from tacit.update import Layout, LocalUpdate
from tests.unit.small_federation import PRIVATE as RECORD
from tests.unit.small_federation import Federation, ledger_entries, same

IDEAL = "secure_aggregation.engine=ideal"
SEEDED = "insecure_seeded_noise=true"
CLIENT = "privacy.client={epsilon=50.0, delta=1e-2, target_quantile=0.5}"
PRIVACY = {
    "none": (),
    "record": (RECORD, SEEDED),
    "client": (CLIENT, SEEDED),
    "both": (CLIENT, RECORD, SEEDED),
}
LAYOUTS = {"weight": Encoder, "bit": ClientLevelEncoder}


@pytest.mark.parametrize("privacy", list(PRIVACY.values()), ids=list(PRIVACY))
def test_the_sum_is_that_of_the_serial_path(tmp_path: Path, privacy, caplog):
    """Training gives the same floats up to rounding; where it gives the same ones, so do the integers."""
    federation = Federation(tmp_path, IDEAL, "evaluation.metrics=true", *_paid(privacy))
    over_messages = federation.run(tmp_path / "messages")
    with CohortExecutor() as executor:
        caplog.set_level("INFO", logger="simulations.stacked")
        at_once = federation.run(tmp_path / "cohort", executor=executor)
    assert "executor stacked: 6 clients at once" in caplog.text
    assert "failed" not in caplog.text
    for name, values in over_messages.items():
        np.testing.assert_allclose(at_once[name], values, atol=1e-5)
    serial = Federation(tmp_path / "serial", IDEAL, "simulation.executor=serial", *_paid(privacy))
    one_by_one = serial.run(tmp_path / "one", executor=cohort.train_cohort)
    assert same(one_by_one, serial.run(tmp_path / "two"))


def _paid(privacy):
    """The metrics of a private run are paid for."""
    return tuple(
        p.replace("delta=1e-5}", "delta=1e-5, metrics_share=0.1}") if p == RECORD else p for p in privacy
    )


@given(data=st.data(), kind=st.sampled_from(list(LAYOUTS)), c_int=st.sampled_from([2**8, 2**16, 2**24]))
def test_each_row_is_the_vector_that_its_client_gets_alone(data, kind, c_int):
    layout = Layout((("a", (2, 3)), ("b", (4,))), (), kind)
    encoder = LAYOUTS[kind](layout, 1.0, c_int)
    seed = data.draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    scales = rng.choice([0.0, 1e-30, 0.1, 0.316, 5.0, 1e30], size=(7, 1))
    deltas = (rng.normal(size=(7, 10)) * scales).astype(np.float32)
    weights = [1.0] * 7 if kind == "bit" else list(rng.uniform(0.01, 1, 7))
    uniforms = rng.uniform(size=(7, encoder.num_uniforms))
    values, clipped = encoder.encode_rows(deltas, weights, [{}] * 7, uniforms)
    for i in range(7):
        update = LocalUpdate({"a": deltas[i, :6].reshape(2, 3), "b": deltas[i, 6:]}, weights[i], {})
        alone = encoder.encode(update, lambda n, i=i: uniforms[i])
        assert np.array_equal(values[i], alone.values)
        assert clipped[i] == alone.clipped


def test_I11_a_sites_debit_is_in_its_ledger_before_its_vector_is_in_a_sum(tmp_path: Path, monkeypatch):
    federation, seen = Federation(tmp_path, IDEAL, RECORD, "training.rounds=1"), []
    real = cohort._Tally.add

    def add(self, values, num_clipped):
        seen.append([ledger_entries(federation.sites / str(i)) for i in range(6)])
        real(self, values, num_clipped)

    monkeypatch.setattr(cohort._Tally, "add", add)
    with CohortExecutor() as executor:
        federation.run(tmp_path / "run", executor=executor)
    assert seen == [[1] * 6]


def test_ledgers_have_the_entries_that_the_serial_path_writes(tmp_path: Path):
    entries = []
    for name in ("serial", "stacked"):
        federation = Federation(tmp_path / name, IDEAL, RECORD, f"simulation.executor={name}")
        with CohortExecutor() as executor:
            federation.run(tmp_path / f"{name}-run", executor=executor)
        lines = (federation.sites / "3" / "ledger" / "ledger.jsonl").read_text().splitlines()
        kept = ("round", "attempt", "purpose", "unit", "event", "delta", "sequence")
        entries.append([{key: json.loads(line)[key] for key in kept} for line in lines])
        with Site.open(federation.sites / "3").ledger() as ledger:  # free again, and whole
            assert len(ledger.entries) == 3
    assert entries[0] == entries[1]
    assert len(entries[0]) == 3


def test_a_site_that_cannot_pay_is_in_no_sum_and_the_others_are(tmp_path: Path, monkeypatch):
    federation = Federation(tmp_path, IDEAL, RECORD)
    real = Ledger.debit

    def debit(self, run, round, *rest, **named):
        if "/2/" in str(self._file._path) and round == 2:
            raise StorageError("the disk is full")
        return real(self, run, round, *rest, **named)

    monkeypatch.setattr(Ledger, "debit", debit)
    with CohortExecutor() as executor, federation.rounds(tmp_path / "run", executor=executor) as rounds:
        progress = rounds.next_round(rounds.resumed(federation.initial()))
        assert len(rounds.grid.facts.survivors) == 6
        progress = rounds.next_round(progress)
        assert len(rounds.grid.facts.survivors) == 5
        assert rounds.grid.facts.refusals == {"unavailable": 1}
        rounds.next_round(progress)
        assert len(rounds.grid.facts.survivors) == 6
    assert ledger_entries(federation.sites / "2") == 2


def test_an_operator_who_changes_a_policy_is_heard_in_the_next_round(tmp_path: Path):
    federation = Federation(tmp_path, IDEAL)
    policy = federation.sites / "1" / "policy.toml"
    with CohortExecutor() as executor, federation.rounds(tmp_path / "run", executor=executor) as rounds:
        progress = rounds.next_round(rounds.resumed(federation.initial()))
        allowed = policy.read_text()
        policy.write_text(allowed.replace("allow_single_updates = true", "allow_single_updates = false"))
        progress = rounds.next_round(progress)
        assert rounds.grid.facts.refusals == {"single-update": 1}
        policy.write_text(allowed)
        rounds.next_round(progress)
        assert rounds.grid.facts.refusals == {}


@pytest.mark.parametrize("most", [cohort.MOST_AHEAD, 0], ids=["all", "bounded"])
def test_records_are_read_before_the_first_round_as_far_as_they_fit_into_memory(
    tmp_path: Path, monkeypatch, most
):
    federation, read = Federation(tmp_path, IDEAL), []
    real = TabularClassification.read
    monkeypatch.setattr(cohort, "MOST_AHEAD", most)
    monkeypatch.setattr(TabularClassification, "read", lambda self, *of: read.append(of) or real(self, *of))
    with CohortExecutor() as executor, federation.rounds(tmp_path / "run", executor=executor) as rounds:
        grid = rounds.grid._grid
        executor.read_ahead(map(grid.context, grid.get_node_ids()))
        assert len(read) == (6 if most else 1)
        rounds.next_round(rounds.resumed(federation.initial()))
        assert len(rounds.grid.facts.survivors) == len(read) == 6


def test_a_site_that_cannot_be_read_ahead_refuses_when_it_is_asked(tmp_path: Path):
    federation = Federation(tmp_path, IDEAL)
    Site.open(federation.sites / "4").data.unlink()
    with CohortExecutor() as executor, federation.rounds(tmp_path / "run", executor=executor) as rounds:
        grid = rounds.grid._grid
        executor.read_ahead(map(grid.context, grid.get_node_ids()))
        rounds.next_round(rounds.resumed(federation.initial()))
        assert len(rounds.grid.facts.survivors) == 5
        assert sum(rounds.grid.facts.refusals.values()) == 1


def test_a_simulated_round_waits_for_no_disk_unless_it_is_asked_to(tmp_path: Path, monkeypatch):
    federation, waited = Federation(tmp_path, IDEAL), []
    with CohortExecutor() as executor:
        quick = partial(RunState, durable=False)
        with federation.rounds(tmp_path / "run", executor=executor, state=quick) as rounds:
            progress = rounds.resumed(federation.initial())
            monkeypatch.setattr(os, "fsync", waited.append)
            rounds.next_round(progress)
    assert ledger_entries(federation.sites / "2") == 1
    assert waited == []
