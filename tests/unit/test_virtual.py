"""A population that is a rule: clients made when they are drawn, and what is kept of them."""

import sys
from pathlib import Path

import pytest
import torch

from simulations.run import simulate
from simulations.virtual import LEDGERS, LedgerFile, records_of
from tacit import config
from tacit.errors import ConfigError
from tacit.population import Labels, Nodes
from tacit.secagg.members import Unenrolled
from tacit.tasks import Records

TEXT = """
name = "virtual"
[task.model]
hidden = [4]
[partition]
kind = "virtual"
num_clients = 1_000_000
rows = 8
[training]
rounds = 2
clients_per_round = 20
local_steps = 2
sampling_rate = 0.5
[secure_aggregation]
engine = "ideal"
precision_bits = 20
[privacy.client]
epsilon = 8.0
delta = 1e-7
[simulation]
baselines = false
"""


def test_a_million_clients_are_simulated_and_only_those_drawn_are_kept(tmp_path: Path):
    record = simulate(config.loads(TEXT), tmp_path)
    assert [len(r.survivors) for r in record.rounds] == [20, 20]
    assert all(label.startswith("client-") for r in record.rounds for label in r.survivors)
    (promise,) = record.privacy
    assert (promise.unit, promise.delta) == ("client", 1e-7)
    assert "1000000 simulated clients of 8 records" in (tmp_path / "privacy-statement.md").read_text()
    drawn = {label for r in record.rounds for label in r.survivors}
    with LedgerFile(tmp_path / "sites" / LEDGERS, durable=False) as file:
        ledgers = file.busiest(1000)
    assert set(ledgers) == drawn
    assert sum(map(len, ledgers.values())) == 40
    assert {entry.purpose for entries in ledgers.values() for entry in entries} == {"sum"}
    assert sorted(p.name for p in (tmp_path / "sites").iterdir() if p.is_dir()) == ["0"]


def test_a_clients_records_follow_from_the_seed_and_its_number_alone():
    experiment = config.loads(TEXT + "[federation.population]\nsize = 1_000_000\nrows = 8\n")
    pool = Records(torch.arange(50.0).reshape(50, 1), torch.arange(50))
    first = records_of(experiment, pool, ["client-7", "client-999999", "client-8"])
    again = records_of(experiment, pool, ["client-8", "client-7"])
    assert all(len(r.targets) == 8 for r in first)
    assert torch.equal(first[0].targets, again[1].targets)
    assert torch.equal(first[2].features, again[0].features)
    assert not torch.equal(first[0].targets, first[1].targets)
    other = records_of(experiment.model_copy(update={"seed": 8}), pool, ["client-7"])
    assert not torch.equal(first[0].targets, other[0].targets)


def test_memory_does_not_grow_with_the_population():
    labels = Labels(1_000_000)
    nodes = Nodes(labels, 2)
    members = Unenrolled(nodes)
    assert (labels[0], labels[-1], len(labels), labels[3:5]) == (
        "client-0",
        "client-999999",
        1_000_000,
        ["client-3", "client-4"],
    )
    assert labels.index("client-17") == 17
    assert nodes["client-17"] == 19
    assert (members[19].index, members[19].label) == (17, "client-17")
    assert len(nodes) == len(members) == 1_000_000
    for wrong in ("client-1000000", "client-01", "client--1", "site-1", "client-"):
        with pytest.raises(ValueError, match="no client"):
            labels.index(wrong)
        assert wrong not in nodes
    with pytest.raises(KeyError):
        members[1]
    assert sum(map(sys.getsizeof, (labels, nodes, members))) < 1000


def test_a_virtual_clients_ledger_has_the_chain_of_a_sites_own(tmp_path: Path):
    from tacit.privacy.accountant import Event

    def paid(file: LedgerFile, times: int) -> None:
        file.load(["client-1", "client-2"])
        for number in range(times):
            with file.ledger("client-1") as ledger:
                ledger.debit("run", number, 1, "sum", "client", Event("gaussian", 1.0))
        file.commit()

    with LedgerFile(tmp_path / LEDGERS, durable=True) as file:
        paid(file, 2)
    with LedgerFile(tmp_path / LEDGERS, durable=False) as file:
        paid(file, 1)
        entries = file.busiest(5)["client-1"]
    assert [entry.sequence for entry in entries] == [1, 2, 3]
    assert [entry.previous for entry in entries[1:]] == [entry.hash for entry in entries[:-1]]
    assert (tmp_path / LEDGERS).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("secure_aggregation.engine=protocol", "secure_aggregation.engine"),
        (
            'data.schema={label="y", scaling="federated", columns={x={kind="numeric", range=[0.0, 1.0]}}}',
            "scaling",
        ),
    ],
)
def test_what_needs_real_folders_is_refused(tmp_path: Path, change, key):
    with pytest.raises(ConfigError, match=key):
        simulate(config.loads(TEXT, overrides=(change,)), tmp_path)


def test_an_encoding_that_does_not_fit_says_what_would():
    large = ("training.clients_per_round=10000", "secure_aggregation.precision_bits=18")
    with pytest.raises(ConfigError, match=r"10000 clients does not fit into 32 bits; 17 is the most"):
        config.loads(TEXT, overrides=large)
