"""`dp_ftrl` from experiment to model: turns that server and sites keep, restarts, and where it comes to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client.site import Site
from server import app
from server.noise import FILE, NoiseFile
from server.state import RunState, read_rounds
from simulations.cohort import train_cohort
from simulations.run import simulate
from strategies.rounds import Progress, Rounds, arranged
from strategies.secure_grid import SecureAggregationGrid
from tacit import config
from tacit.audit import SERVER_FILE, Receipted, read
from tacit.config import Federation as Members
from tacit.encoding import encoder_of
from tacit.errors import RunFailed, StorageError
from tacit.population import Labels, Nodes
from tacit.privacy.accountant import Event
from tacit.privacy.banded import coefficients
from tacit.privacy.ledger import Ledger
from tacit.privacy.plan import SUM, PrivacyPlan
from tacit.secagg.receipt import Receipt, aggregate_digest
from tacit.tasks import load_task
from tacit.update import Aggregate
from tests.unit.quadratic_task import points_of
from tests.unit.small_federation import Federation, Misbehaving, refusal, same
from tests.unit.strategy_conformance import MOVED, TEXT, Stopped, StopsAfterEachRound, flat
from tests.unit.test_banded import dense

FTRL = (
    "strategy.name=dp_ftrl", "strategy.bands=3", "partition.kind=iid", "partition.num_clients=12", "training.rounds=6",
    'privacy.client={epsilon=50.0, delta=0.05, noise="central"}', "secure_aggregation.precision_bits=16",
)  # fmt: skip
SEEDED, IDEAL = "insecure_seeded_noise=true", "secure_aggregation.engine=ideal"
OFF = "secure_aggregation.enabled=false"


def federation(folder: Path, *settings: str) -> Federation:
    return Federation(folder, *FTRL, "checkpoints.keep=0", *settings, text=TEXT)


def run_id(folder: Path) -> str:
    """Tacit's id of a run that a server was started on."""
    return str(json.loads((folder / "run.json").read_text())["run"])


def drawing(experiment: config.Experiment) -> Rounds:
    """Rounds that can draw cohorts, and nothing else."""
    labels = experiment.federation.labels
    nodes = Nodes(labels, 2) if isinstance(labels, Labels) else {label: i for i, label in enumerate(labels)}
    return Rounds(experiment, PrivacyPlan.of(experiment), None, None, nodes, None, "run")  # type: ignore[arg-type]


def gaps(cohorts: list[list[str]]) -> list[int]:
    """Rounds from each time that somebody is in a cohort to the next."""
    last: dict[str, int] = {}
    found = []
    for number, cohort in enumerate(cohorts):
        found += [number - last[label] for label in cohort if label in last]
        last |= dict.fromkeys(cohort, number)
    return found


MEMBERS = {
    "sites": "".join(f'[[federation.sites]]\nlabel = "s{i}"\nrows = 50\n' for i in range(23)),
    "coming and going": "".join(
        f'[[federation.sites]]\nlabel = "s{i}"\nrows = 50\n' + ("joins = 9\n" if i % 4 == 1 else "")
        + ("leaves = 14\n" if i % 7 == 2 else "") for i in range(23)
    ),
    "population": "[federation.population]\nsize = 1001\nrows = 50\n",
}  # fmt: skip


@pytest.mark.parametrize("members", MEMBERS)
@pytest.mark.parametrize("size", [0, 2])
def test_a_member_is_invited_at_most_once_in_min_separation_rounds_and_all_have_their_turn(
    members: str, size: int
) -> None:
    text = 'name = "turns"\n[strategy]\nname = "dp_ftrl"\nmin_separation = 5\n[training]\nrounds = 30\n'
    text += MEMBERS[members]
    experiment = config.loads(text, overrides=(f"training.clients_per_round={size}", OFF))
    rounds = drawing(experiment)
    cohorts = [rounds.draw(number) for number in range(1, 31)]
    assert min(gaps(cohorts)) >= 5
    assert {len(cohort) for cohort in cohorts} == {experiment.cohort_size}
    if size == 0:
        assert experiment.cohort_size == min(len(experiment.invited(number)) for number in range(1, 31))
    assert set().union(*map(experiment.invited, range(1, 31))) == set(experiment.federation.labels)


def test_without_turns_members_are_those_that_are_present() -> None:
    sites = Members.model_validate(
        {"sites": [{"label": "a", "rows": 1}, {"label": "b", "rows": 1, "joins": 2}]}
    )
    assert [list(sites.present(number)) for number in (1, 2)] == [["a"], ["a", "b"]]
    assert sites.fewest_present(3) == 1


@pytest.mark.parametrize(
    ("settings", "executor"),
    [((IDEAL,), None), ((IDEAL,), train_cohort), ((OFF,), None), ((), None)],
    ids=["messages", "cohort", "no secure sum", "protocol"],
)
def test_a_site_is_in_no_two_rounds_that_are_too_close_whatever_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], executor: Any
) -> None:
    made = federation(tmp_path / "sites", *settings)
    monkeypatch.setattr(
        config.Experiment, "invited", lambda self, number: self.federation.present(number)[:4]
    )
    with pytest.raises(RunFailed, match="too-soon"):
        made.run(tmp_path / "run", executor=executor)
    assert [row["round"] for row in read_rounds(tmp_path / "run" / "rounds.jsonl")] == [1]
    for i in range(12):
        with Site.open(made.sites / str(i)).ledger() as ledger:
            assert [entry.round for entry in ledger.entries] == ([1] if i < 4 else [])


def test_a_ledger_knows_the_last_round_of_each_run_over_restarts(tmp_path: Path) -> None:
    event, path = Event("gaussian", 1.0), tmp_path / "ledger" / "ledger.jsonl"
    with Ledger.open(path, durable=False) as ledger:
        assert ledger.last_round("a") == 0
        for run, number in (("a", 0), ("a", 5), ("b", 7), ("a", 3)):
            ledger.debit(run, number, 1, SUM, "client", event)
        assert [ledger.last_round(run) for run in "abc"] == [5, 7, 0]
    with Ledger.open(path, durable=False) as ledger:
        assert [ledger.last_round(run) for run in "abc"] == [5, 7, 0]


def test_an_attempt_that_is_kept_of_other_members_is_let_go_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a server is killed when a round is stored: with turns, nobody whom it asked is asked in the next."""
    made = federation(tmp_path / "sites", "training.rounds=2", SEEDED)
    expected = made.run(tmp_path / "forgetting")
    monkeypatch.setattr(app, "is_federation", lambda: True)  # here nothing but a next attempt lets go of one
    assert same(made.run(tmp_path / "keeping"), expected)


@pytest.mark.parametrize(
    "settings", [(IDEAL,), pytest.param((), marks=pytest.mark.slow)], ids=["ideal", "protocol"]
)
def test_a_run_killed_in_and_after_each_round_has_the_same_noise_as_one_that_was_not(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    class Killed(StopsAfterEachRound):
        """At first before a round is stored, with its noise kept already; then after."""

        last = 6

    made = federation(tmp_path / "sites", SEEDED, "privacy.client.reserve=1.0", *settings)
    whole = made.run(tmp_path / "whole")
    for _ in range(11):
        with pytest.raises(Stopped):
            made.run(tmp_path / "parts", state=Killed)
    assert same(whole, made.run(tmp_path / "parts", state=Killed))


@pytest.mark.parametrize(
    ("settings", "before"), [((IDEAL,), "checkpoint"), ((), "checkpoint"), ((), "receipt")]
)
def test_a_round_killed_after_its_release_is_that_release_and_nobody_is_asked_or_pays_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], before: str
) -> None:
    class Killed(RunState):
        def save(self, progress: Progress, record: Any) -> None:
            if progress.round == 2:
                raise Stopped
            super().save(progress, record)

    def opened(self: SecureAggregationGrid, proof: str) -> None:
        if NoiseFile(run / FILE, run_id(run)).last.round == 2:
            raise Stopped
        write(self, proof)

    def absent(message: Message, real: Any, site: int) -> Message | None:
        asked = message.metadata.message_type.startswith("train")
        return refusal(message, "busy") if asked and site == 4 else None  # whose turn is round 2

    made = federation(
        tmp_path / "sites", "secure_aggregation.max_dropouts=1", "privacy.client.reserve=0.0", *settings
    )
    run, write = tmp_path / "run", SecureAggregationGrid._opened
    if before == "receipt":
        monkeypatch.setattr(SecureAggregationGrid, "_opened", opened)
    with pytest.raises(Stopped):
        made.run(run, state=Killed, app=Misbehaving(absent))
    released = NoiseFile(run / FILE, run_id(run)).last
    assert released.round == 2
    monkeypatch.undo()
    made.run(run)
    rows = read_rounds(run / "rounds.jsonl")
    assert [len(row["survivors"]) for row in rows] == [4, 3, 4, 4, 4, 4]
    for i, rounds_paid in ((1, [2, 5]), (4, [5]), (7, [2, 5]), (10, [2, 5])):
        with Site.open(made.sites / str(i)).ledger() as ledger:
            assert [entry.round for entry in ledger.entries] == rounds_paid
    with made.rounds(run) as rounds:
        models = [rounds.store.model_of(number) for number in (1, 2)]  # type: ignore[attr-defined]
        first, second = (arranged(model, made.initial()) for model in models)
    plan, task = PrivacyPlan.of(made.experiment), load_task(made.experiment)
    mean = encoder_of(made.experiment, plan, task, first).decode(released.total, 1e6)
    np.testing.assert_allclose(flat(second) - flat(first), flat(mean.arrays), rtol=0, atol=1e-6)
    if not settings:
        receipts = [Receipt.decode(bytes.fromhex(e.receipt)) for e in read(made.sites / SERVER_FILE)
                    if isinstance(e, Receipted)]  # fmt: skip
        assert [(r.round, len(r.survivors)) for r in receipts] == [
            (row["round"], len(row["survivors"])) for row in rows
        ]
        assert receipts[1].aggregate == aggregate_digest(Aggregate(released.total.values, 3)), "of 3 vectors"


def test_a_sum_that_was_spoilt_is_not_kept_and_the_round_can_be_made_again(tmp_path: Path) -> None:
    made, run = federation(tmp_path / "sites", IDEAL), tmp_path / "run"

    def garbage(message: Message, real: Any, site: int) -> Message | None:
        if site != 1 or message.metadata.message_type != "train.ideal":
            return None
        answer: Message = real()
        record = answer.content.array_records["encoded"]
        record["values"] = type(record["values"])(record["values"].numpy() + 2**40)
        return answer

    with pytest.raises(RunFailed, match="spoilt"):
        made.run(run, app=Misbehaving(garbage))
    assert NoiseFile(run / FILE, run_id(run)).last.round == 1
    made.run(run)
    assert [row["round"] for row in read_rounds(run / "rounds.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_model_without_the_noise_that_belongs_to_it_is_not_gone_on_with(tmp_path: Path) -> None:
    class Killed(RunState):
        def save(self, progress: Progress, record: Any) -> None:
            super().save(progress, record)
            if progress.round == 3:
                raise Stopped

    made, run = federation(tmp_path / "sites", IDEAL), tmp_path / "run"
    with pytest.raises(Stopped):
        made.run(run, state=Killed)
    (run / FILE).unlink()
    asked = Misbehaving(lambda message, real, site: None)
    with pytest.raises(StorageError, match="round 4 was to be next"):
        made.run(run, app=asked)
    assert not [kind for _, kind in asked.asked if kind.startswith("train")], "nobody has been asked to train"


def test_protocol_ideal_sum_and_whole_cohorts_give_one_model_with_the_same_keys(tmp_path: Path) -> None:
    protocol = federation(tmp_path / "a", SEEDED).run(tmp_path / "protocol")
    ideal, whole = (
        federation(tmp_path / name, SEEDED, IDEAL).run(tmp_path / f"{name}-run", executor=executor)
        for name, executor in (("b", None), ("c", train_cohort))
    )
    assert same(protocol, ideal) and same(ideal, whole)


def test_it_comes_from_afar_to_the_optimum_that_is_known_as_near_as_its_noise_allows(tmp_path: Path) -> None:
    rate, number = 0.4, 30
    made = federation(
        tmp_path / "sites", IDEAL, f"training.rounds={number}", f"strategy.server_learning_rate={rate}",
        "checkpoints.keep=1", "privacy.client.epsilon=500.0",
    )  # fmt: skip
    points = [points_of(made.sites / str(i) / "data.csv", "train").astype(np.float64) for i in range(12)]
    optima = np.array([own.mean(axis=0) for own in points])
    far = {array: np.full_like(value, 3.0) for array, value in made.initial().items()}
    with made.rounds(tmp_path / "run", executor=train_cohort) as rounds:
        model = flat(rounds.run(far).arrays)
    expected = np.full(3, 3.0)
    for t in range(number):  # those whose turn it is move by MOVED towards their own optima
        expected += rate * MOVED * (optima[t % 3 :: 3].mean(axis=0) - expected)
    assert np.abs(expected - optima.mean(axis=0)).max() < 0.1, "by then it is there but for the noise"
    plan = PrivacyPlan.of(made.experiment).client
    assert plan is not None
    left = rate * (1 - rate * MOVED) ** np.arange(number)[::-1]  # of the noise of each round
    unit = 10.0 / 2**16 / made.experiment.cohort_size
    std = unit * plan.share_std * float(np.linalg.norm(left @ np.linalg.inv(dense(coefficients(3), number))))
    assert np.abs(model - expected).max() < 5 * std < 1.5


@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(
            ("privacy.record={epsilon=20.0, delta=1e-4, metrics_share=0.1}",), marks=pytest.mark.slow
        ),
    ],
)
def test_a_simulation_reports_what_is_promised_and_leaves_no_noise_behind(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    more = ("evaluation.metrics=true", *more)
    tabular = [setting for setting in FTRL if "precision" not in setting]
    text = TEXT.replace('kind = "tests.unit.quadratic_task:Quadratic"', "").replace(
        'kind = "dirichlet"\nalpha = 0.3\n', ""
    )
    record = simulate(config.loads(text, overrides=(*tabular, *more, IDEAL)), tmp_path / "out")
    assert [entry.unit for entry in record.privacy] == (["record", "client"] if len(more) > 1 else ["client"])
    promise = record.privacy[-1]
    assert promise.debits == 3 and promise.epsilon_spent is not None
    assert promise.epsilon_spent < promise.epsilon <= 50
    assert (
        "correlated over 3 rounds (DP-FTRL)" in promise.mechanism
        and "at most once in 3 rounds" in promise.mechanism
    )
    statement = (tmp_path / "out" / "privacy-statement.md").read_text()
    assert "each takes back part of what the rounds before have added" in statement
    assert not list((tmp_path / "out").rglob(FILE))
    assert min(gaps([list(row.cohort) for row in record.rounds])) == 3
