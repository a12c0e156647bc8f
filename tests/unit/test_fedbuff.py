"""`fedbuff`: rounds that are under way at a time, in one process and in threads: what they make, what they survive."""

import itertools
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from client.app import app as client_app
from client.site import Site
from server import app
from server.experiments import are_enough
from server.receipts import ReceiptFile
from server.state import read_rounds
from simulations.local_grid import LocalGrid
from strategies import overlap
from tacit import config
from tacit.audit import SERVER_FILE, SITE_FILE, AuditLog, Released, Requested
from tacit.audit_check import compare, open_side
from tacit.errors import ConfigError, RunFailed
from tests.unit.quadratic_task import points_of
from tests.unit.small_federation import Federation, Misbehaving, same
from tests.unit.strategy_conformance import MOVED, PLAIN, TEXT, Stopped, StopsAfterEachRound, flat

IDEAL = "secure_aggregation.engine=ideal"
BUFFERED = (
    "strategy.name=fedbuff", "strategy.cohorts_at_once=2", "strategy.server_learning_rate=0.9",
    "partition.kind=iid", "partition.num_clients=8", "training.rounds=6",
)  # fmt: skip


def federation(folder: Path, *settings: str) -> Federation:
    return Federation(folder, *BUFFERED, *settings, text=TEXT)


_BUSY = threading.Lock()


def one_at_a_time(message: Message, context: Context) -> Message:
    """The sites of one process have one model between them; those of a federation do not."""
    with _BUSY:
        return client_app(message, context)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a federation, whose sites are other processes."""
    monkeypatch.setattr(app, "is_federation", lambda: True)


@pytest.mark.parametrize("at_once", [2, 3])
def test_a_round_moves_the_newest_model_by_what_its_cohort_has_made_of_an_older_one(
    tmp_path: Path, at_once: int
) -> None:
    """Nguyen et al. 2022: by hand, over sites whose update is known."""
    made = federation(tmp_path / "sites", PLAIN, f"strategy.cohorts_at_once={at_once}")
    optima = {
        label: points_of(made.sites / str(i) / "data.csv", "train").mean(axis=0, dtype=np.float64)
        for i, label in enumerate(made.labels)
    }
    models = [np.zeros(3)]
    for number in range(1, 7):
        base = models[max(0, number - at_once)]
        cohort = made.labels[(number - 1) % at_once :: at_once][: made.experiment.cohort_size]
        if len(cohort) < len(made.labels[(number - 1) % at_once :: at_once]):
            with made.rounds(tmp_path / "drawing") as rounds:
                cohort = rounds.draw(number)
        update = np.mean([MOVED * (optima[label] - base) for label in cohort], axis=0)
        staleness = number - 1 - max(0, number - at_once)
        models.append(models[-1] + 0.9 / np.sqrt(1 + staleness) * update)
    np.testing.assert_allclose(flat(made.run(tmp_path / "run")), models[-1], rtol=0, atol=1e-5)
    rows = read_rounds(tmp_path / "run" / "rounds.jsonl")
    for row, following in itertools.pairwise(rows):
        assert not set(row["cohort"]) & set(following["cohort"])


@pytest.mark.parametrize("settings", [(PLAIN,), ()], ids=["plain", "protocol"])
def test_rounds_that_overlap_in_a_federation_make_the_model_of_a_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    """And they do overlap: no site of round 1 gets further than its first step until round 2 has begun."""
    made = federation(tmp_path / "sites", *settings)
    expected = made.run(tmp_path / "one process")
    both, threads = threading.Event(), set[str]()

    def waits(message: Message, context: Context) -> Message:
        if message.metadata.message_type.startswith("train"):
            threads.add(threading.current_thread().name)
            if len(threads) > 1:
                both.set()
            assert both.wait(30), "the next round begins while this one is under way"
        return one_at_a_time(message, context)

    kept = ReceiptFile._keep

    def slowly(*arguments: Any) -> None:
        time.sleep(0.1)  # long enough for the other round to take the same place
        kept(*arguments)

    monkeypatch.setattr(ReceiptFile, "_keep", slowly)
    monkeypatch.setattr(app, "is_federation", lambda: True)
    assert same(made.run(tmp_path / "threads", app=waits), expected)
    assert len(threads) == 2
    if not settings:
        receipts = ReceiptFile(made.sites / SERVER_FILE).receipts[-6:]
        assert sorted(receipt.round for receipt in receipts) == [1, 2, 3, 4, 5, 6]


class Lasting(LocalGrid):
    """What sites remember outlives their process, as it does in a federation."""

    def context(self, node: int) -> Context:
        context = super().context(node)
        context.node_config["sessions"] = "files"
        return context


class Killed(StopsAfterEachRound):
    last = 6


@pytest.mark.parametrize("threads", [False, True], ids=["in turn", "at once"])
def test_a_run_that_is_killed_around_every_round_makes_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: bool
) -> None:
    made = federation(tmp_path / "sites", "strategy.cohorts_at_once=2")
    monkeypatch.setattr(app, "is_federation", lambda: threads)
    options: dict[str, Any] = {"app": one_at_a_time, "grid": Lasting if threads else LocalGrid}
    whole = made.run(tmp_path / "whole", **options)
    for _ in range(15):
        try:
            stopped = made.run(tmp_path / "stopped", state=Killed, **options)
            break
        except Stopped:
            pass
    assert same(whole, stopped)


class SomeAway(LocalGrid):
    """Nodes that are not connected."""

    away: frozenset[int] = frozenset()

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if node not in self.away]


def test_a_cohort_is_drawn_from_those_who_are_ready_and_stays_the_same_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = federation(tmp_path / "sites", "training.clients_per_round=3", PLAIN)
    with made.rounds(tmp_path / "run", grid=SomeAway) as rounds:
        monkeypatch.setattr(SomeAway, "away", frozenset({made.node(0), made.node(1)}))
        progress = rounds.resumed(made.initial())
        # Places 0, 2, 4, 6 have the first turn and 1, 3, 5, 7 the second.
        assert progress.cohorts == {n: [made.labels[i] for i in range(n + 1, 8, 2)] for n in (1, 2)}
        monkeypatch.setattr(SomeAway, "away", frozenset())
        progress = rounds.next_round(progress)
        assert progress.cohorts[2] == [made.labels[i] for i in (3, 5, 7)]
        monkeypatch.setattr(SomeAway, "away", frozenset({made.node(0), made.node(2), made.node(4)}))
        assert set(rounds.draw(3)) <= {made.labels[i] for i in (0, 2, 4, 6)}, "too few: any may be waited for"
    monkeypatch.setattr(SomeAway, "away", frozenset())
    with made.rounds(tmp_path / "run", grid=SomeAway) as rounds:
        monkeypatch.setattr(SomeAway, "away", frozenset({made.node(1), made.node(3)}))
        assert rounds.resumed(made.initial()).cohorts == progress.cohorts


def test_a_member_pays_for_one_in_so_many_rounds_and_its_ledger_says_so(tmp_path: Path) -> None:
    settings = ("privacy.client={epsilon=50.0, delta=0.05}", "secure_aggregation.precision_bits=16", IDEAL)
    made = federation(tmp_path / "sites", *settings)
    made.run(tmp_path / "run")
    rows = read_rounds(tmp_path / "run" / "rounds.jsonl")
    for i, label in enumerate(made.labels):
        with Site.open(made.sites / str(i)).ledger() as ledger:
            assert [entry.round for entry in ledger.entries] == [1 + i % 2, 3 + i % 2, 5 + i % 2], label
    assert rows[0]["epsilon"] == rows[1]["epsilon"] < rows[2]["epsilon"]


def test_a_site_refuses_the_round_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = federation(tmp_path / "sites", "privacy.record={epsilon=20.0, delta=1e-5}", IDEAL)
    monkeypatch.setattr(
        config.Experiment, "invited", lambda self, number: self.federation.present(number)[:4]
    )
    with pytest.raises(RunFailed, match="too-soon"):
        made.run(tmp_path / "run")


@pytest.mark.usefixtures("in_threads")
def test_a_round_that_fails_ends_those_that_are_under_way(tmp_path: Path) -> None:
    """They wait for a site that says nothing, and would for long."""
    made = federation(tmp_path / "sites", "secure_aggregation.deadline_seconds=600")
    begun = threading.Event()

    class Silent(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            answers = list(super().pull_messages(message_ids))
            if threading.current_thread().name == second.get("name"):
                return []
            return answers

    second: dict[str, str] = {}

    def what(message: Message, real: Any, site: int) -> Message | None:
        if not message.metadata.message_type.startswith("train"):
            return None
        if site % 2:
            second["name"] = threading.current_thread().name
            begun.set()
            return None
        begun.wait(30)
        raise ValueError("of round 1")

    with pytest.raises(RunFailed, match="of round 1"):
        made.run(tmp_path / "run", app=Misbehaving(what), grid=Silent)
    assert not [t for t in threading.enumerate() if t.name.startswith("cohort")]


def test_a_thread_that_is_told_to_stop_sends_and_asks_no_more() -> None:
    stop = threading.Event()
    grid = overlap.Stoppable(LocalGrid(Misbehaving(lambda *rest: None), {}, 1), stop)  # type: ignore[arg-type]
    assert list(grid.push_messages([])) == list(grid.pull_messages([])) == []
    stop.set()
    for call in (grid.push_messages, grid.pull_messages):
        with pytest.raises(RunFailed, match="has ended"):
            call([])
    stop.clear()
    overlap.AtOnce(grid, [grid], stop).close()  # type: ignore[list-item]
    assert stop.is_set()


REFUSED = {
    "early stopping": (("evaluation.patience=2",), "evaluation.patience goes by the model"),
    "a clip norm that adapts": (
        ("privacy.client={epsilon=5.0, delta=0.01, target_quantile=0.5}",),
        "begins a round before the clip norm",
    ),
    "too few members": (
        ("strategy.cohorts_at_once=9",), "cohorts_at_once = 9 needs as many clients to take turns, and there are 8",
    ),
    "small cohorts": (
        ("strategy.cohorts_at_once=4",), "strategy.cohorts_at_once = 4 makes 4 turns of the 8 clients",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_with_rounds_that_overlap_is_refused_with_the_reason(case: str) -> None:
    settings, reason = REFUSED[case]
    with pytest.raises(ConfigError, match=reason):
        config.loads(TEXT, overrides=(*BUFFERED, *settings))


def test_an_audit_compares_what_a_site_began_from_with_the_model_of_so_many_rounds_before(
    tmp_path: Path,
) -> None:
    server, site = AuditLog(tmp_path / "server" / SERVER_FILE), AuditLog(tmp_path / "site" / SITE_FILE)
    for number in range(1, 5):
        server.write(Released("run", number, f"{number:064x}", ("a",), "inf", at_once=2))
    site.write(Requested("run", 4, 1, f"{2:064x}", "0" * 64, "0" * 64))
    sides = open_side(tmp_path / "site" / SITE_FILE), open_side(tmp_path / "server" / SERVER_FILE)
    assert compare(*sides) == []
    site.write(Requested("run", 4, 2, f"{3:064x}", "0" * 64, "0" * 64))  # of the round before
    [said] = compare(open_side(tmp_path / "site" / SITE_FILE), sides[1])
    assert "round 4" in said and "did not release" in said


def test_a_run_begins_when_enough_are_there_for_each_turn(tmp_path: Path) -> None:
    experiment = federation(tmp_path / "sites").experiment  # cohorts of 4, of whom 1 may be missing
    labels = [site.label for site in experiment.federation.sites]
    assert are_enough(experiment, set(labels[:6]))
    assert not are_enough(experiment, set(labels[:5])), "of the second turn only 2 are there"
    assert not are_enough(experiment, set(labels[::2]))
