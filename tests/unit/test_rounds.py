"""The rounds over Flower's own strategies: stopped anywhere and resumed, drawn cohorts, stopped early."""

import json
import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Strategy,
)
from safetensors.numpy import load_file

from server import app as server_app
from server.state import RunState, read_rounds
from strategies import secure_grid
from strategies import state as strategy_state
from strategies.rounds import Progress, means
from tacit.errors import ConfigError, StorageError
from tests.unit.small_federation import Federation, Misbehaving, same

STRATEGIES = {
    "FedAvg": partial(FedAvg, fraction_evaluate=0.0),
    "FedProx": partial(FedProx, fraction_evaluate=0.0, proximal_mu=0.1),
    "FedAvgM": partial(FedAvgM, fraction_evaluate=0.0, server_momentum=0.9),
    "FedAdam": partial(FedAdam, fraction_evaluate=0.0),
    "FedYogi": partial(FedYogi, fraction_evaluate=0.0),
    "FedAdagrad": partial(FedAdagrad, fraction_evaluate=0.0),
}


class DecayingStrategy(FedAvg):
    """Keeps a number that changes."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.rate, self.num_calls = 1.0, 0

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        self.rate, self.num_calls = self.rate * 0.5, self.num_calls + 1
        shift = np.float32(self.rate * self.num_calls)
        return ArrayRecord({k: Array(a.numpy() + shift) for k, a in arrays.items()}), metrics


class Stopped(Exception):
    """Stands for `kill -9` of the server."""


class StopsAfterEachRound(RunState):
    """Dies when a round is stored."""

    def save(self, progress: Progress, record: Any) -> None:
        super().save(progress, record)
        if record is not None and progress.round < 3:
            raise Stopped


class StopsBeforeStoring(RunState):
    """Dies in each round at its first try, when everything of the round is done but nothing is stored."""

    def save(self, progress: Progress, record: Any) -> None:
        if record is not None and self.starts == progress.round:
            raise Stopped
        super().save(progress, record)


class StopsBetweenCheckpointAndLine(RunState):
    """Dies in each round between the checkpoint and the line of rounds.jsonl."""

    def _append_round(self, record: Any) -> None:
        if record["round"] < 3:
            raise Stopped
        super()._append_round(record)


class StopsInTheLine(RunState):
    """Dies in each round in the middle of the line of rounds.jsonl."""

    def _append_round(self, record: Any) -> None:
        super()._append_round(record)
        path = self.folder / "rounds.jsonl"
        if record["round"] < 3:
            path.write_bytes(path.read_bytes()[:-20])
            raise Stopped


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("federation"))


def run_with_stops(federation: Federation, folder: Path, strategy: Any, state: type[RunState]) -> Any:
    for _ in range(10):
        try:
            return federation.run(folder, strategy(), state=state)
        except Stopped:
            pass
    raise AssertionError("the run never came to its end")


def rows(folder: Path) -> list[dict[str, Any]]:
    """Rounds as written down, but for what a clock says."""
    return [{**row, "seconds": None, "phases": None} for row in read_rounds(folder / "rounds.jsonl")]


# -- resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*STRATEGIES, "a number that decays"])
def test_D1_a_run_resumed_after_each_round_gives_the_bit_equal_model(
    federation: Federation, tmp_path: Path, name: str
) -> None:
    strategy = STRATEGIES.get(name, DecayingStrategy)
    whole = federation.run(tmp_path / "whole", strategy())
    stopped = run_with_stops(federation, tmp_path / "stopped", strategy, StopsAfterEachRound)
    assert same(whole, stopped)
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")


@pytest.mark.parametrize("state", [StopsBeforeStoring, StopsBetweenCheckpointAndLine, StopsInTheLine])
def test_D1_a_server_killed_anywhere_in_a_round_loses_no_round_and_applies_none_twice(
    federation: Federation, tmp_path: Path, state: type[RunState]
) -> None:
    strategy = STRATEGIES["FedAdam"]
    whole = federation.run(tmp_path / "whole", strategy())
    stopped = run_with_stops(federation, tmp_path / "stopped", strategy, state)
    assert same(whole, stopped)
    assert [row["round"] for row in rows(tmp_path / "stopped")] == [1, 2, 3]
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")


def test_a_strategys_state_is_what_makes_the_difference(federation: Federation, tmp_path: Path) -> None:
    """The tests above would not see a lost moment if it did not change the model."""

    class Forgetful(StopsAfterEachRound):
        def load(self) -> Progress | None:
            progress = super().load()
            if progress is not None:
                progress.strategy = {}
            return progress

    for name in ("FedAvgM", "FedAdam"):
        whole = federation.run(tmp_path / name / "whole", STRATEGIES[name]())
        stopped = run_with_stops(federation, tmp_path / name / "stopped", STRATEGIES[name], Forgetful)
        assert not same(whole, stopped)


def test_a_finished_run_is_not_run_again(federation: Federation, tmp_path: Path) -> None:
    nobody = Misbehaving(lambda message, real, site: None)
    first = federation.run(tmp_path)
    again = federation.run(tmp_path, app=nobody)
    assert same(first, again)
    assert {kind for _, kind in nobody.asked} == {"query.tacit"}


def test_a_stored_model_of_another_task_is_refused(federation: Federation, tmp_path: Path) -> None:
    federation.run(tmp_path)
    with federation.rounds(tmp_path) as rounds, pytest.raises(StorageError, match="other arrays"):
        rounds.run({name: array[..., None] for name, array in federation.initial().items()})


# -- state of a strategy -----------------------------------------------------------------------------------------


class Caller:
    def __call__(self) -> None:
        return None


@pytest.mark.parametrize(
    "value",
    [
        [1.0],
        [[np.zeros(2)]],
        {1, 2},
        random.Random(),
        Caller(),
        {"a": [1]},
        {1: np.zeros(2)},
        b"x",
        np.array([None]),
        10**30,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_strategy_that_keeps_other_state_is_refused_before_anybody_is_asked(
    federation: Federation, tmp_path: Path, value: object
) -> None:
    strategy = FedAvg(fraction_evaluate=0.0)
    strategy.extra = value  # type: ignore[attr-defined]
    app = Misbehaving(lambda message, real, site: None)
    with (
        federation.rounds(tmp_path, strategy, app=app) as rounds,
        pytest.raises(ConfigError, match=r"strategy\.name: FedAvg keeps .* in 'extra'.*cannot resume"),
    ):
        rounds.run(federation.initial())
    assert {kind for _, kind in app.asked} == {"query.tacit"}


def test_a_wrapper_around_another_strategy_is_refused(federation: Federation, tmp_path: Path) -> None:
    wrapped = DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), 1.0, 100)
    with pytest.raises(ConfigError, match="keeps FedAvg"):
        federation.run(tmp_path, wrapped)


def test_state_that_appears_later_is_refused_when_it_appears(federation: Federation, tmp_path: Path) -> None:
    class Diary(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            self.pages = [server_round]
            return super().aggregate_train(server_round, replies)

    with pytest.raises(ConfigError, match="keeps list in 'pages'"):
        federation.run(tmp_path, Diary(fraction_evaluate=0.0))


def test_every_kind_of_state_comes_back_as_it_was() -> None:
    saved: Strategy = FedAvg()
    values: dict[str, Any] = {
        "moment": {"layer.0": np.arange(6.0).reshape(2, 3), "b": np.float32([1])},
        "vector": np.arange(3),
        "record": ArrayRecord({"a": Array(np.ones(2, dtype=np.float32))}),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "rate": 0.1,
        "count": 3,
        "seen": True,
        "nothing": {},
    }
    for name, value in values.items():
        setattr(saved, name, value)
    restored: Any = FedAvg()
    strategy_state.restore_state(restored, strategy_state.save_state(saved))
    assert restored.rate == 0.1
    assert type(restored.count) is int
    assert restored.seen is True
    assert np.array_equal(restored.vector, values["vector"])
    assert np.array_equal(restored.transposed, values["transposed"])
    assert np.array_equal(restored.record["a"].numpy(), np.ones(2))
    assert restored.moment.keys() == values["moment"].keys()
    assert all(np.array_equal(restored.moment[k], values["moment"][k]) for k in restored.moment)


# -- cohorts -----------------------------------------------------------------------------------------------------


def drawn(federation: Federation, folder: Path) -> list[list[str]]:
    federation.run(folder)
    return [row["cohort"] for row in rows(folder)]


def test_cohorts_follow_from_seed_and_round_alone_and_are_stored_with_the_round(tmp_path: Path) -> None:
    few = ("training.clients_per_round=4", "secure_aggregation.max_dropouts=0", "training.rounds=4")
    federation = Federation(tmp_path / "sites", *few)
    random.seed(1)
    np.random.seed(1)
    first = drawn(federation, tmp_path / "a")
    random.seed(2)
    np.random.seed(2)
    assert drawn(federation, tmp_path / "b") == first
    assert len({tuple(cohort) for cohort in first}) > 1
    assert all(cohort == sorted(cohort) and len(set(cohort)) == 4 for cohort in first)
    assert all(row["survivors"] == row["cohort"] for row in rows(tmp_path / "a"))
    stored = [
        json.loads((tmp_path / "a" / "checkpoints" / f"round-{n:06d}" / "counters.json").read_bytes())
        for n in range(1, 5)
    ]
    assert [counters["record"]["cohort"] for counters in stored] == first
    other = Federation(tmp_path / "others", *few, "seed=8")
    assert drawn(other, tmp_path / "c") != first


def test_every_site_is_drawn_equally_often(tmp_path: Path) -> None:
    few = ("training.clients_per_round=4", "secure_aggregation.max_dropouts=0")
    federation = Federation(tmp_path / "sites", *few)
    with federation.rounds(tmp_path / "run") as rounds:
        counts = Counter(label for number in range(1, 601) for label in rounds.draw(number))
    deviation = (600 * (2 / 3) * (1 / 3)) ** 0.5
    assert all(abs(counts[label] - 400) < 5 * deviation for label in federation.labels)


def test_a_strategy_that_would_ask_only_some_is_refused(federation: Federation, tmp_path: Path) -> None:
    half = FedAvg(fraction_train=0.5, fraction_evaluate=0.0)
    with pytest.raises(ConfigError, match="whole cohort"):
        federation.run(tmp_path, half)


# -- early stopping ----------------------------------------------------------------------------------------------


class Scripted(FedAvg):
    """Real aggregation; the sums of metrics are given."""

    def __init__(self, accuracies: list[float]) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.accuracies = np.array(accuracies)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, _ = super().aggregate_train(server_round, replies)
        return arrays, MetricRecord({"accuracy": 10 * self.accuracies[server_round - 1], "records": 10.0})


@pytest.mark.parametrize(
    ("accuracies", "keep", "rounds", "released"),
    [
        # Round n reports on the model of round n - 1.
        ([0.5, 0.6, 0.7, 0.8, 0.9, 0.95], 0, 6, 6),
        ([0.5, 0.9, 0.8, 0.7, 0.6, 0.5], 0, 4, 1),
        ([0.5, 0.9, 0.8, 0.7, 0.6, 0.5], 1, 4, 1),  # kept although others are pruned
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 0, 3, 0),  # equal is not better
        ([0.5, 0.6, 0.5, 0.7, 0.6, 0.6], 1, 6, 3),  # a better one starts the patience again
    ],
)
def test_early_stopping_releases_the_best_rounds_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accuracies: list[float],
    keep: int,
    rounds: int,
    released: int,
) -> None:
    watching = ("evaluation.metrics=true", "evaluation.patience=2", "training.rounds=6")
    federation = Federation(tmp_path / "sites", *watching, f"checkpoints.keep={keep}")
    whole = tmp_path / "whole"
    monkeypatch.setattr(server_app, "make_strategy", lambda experiment: Scripted(accuracies))
    monkeypatch.setattr(secure_grid, "check_mean_only", lambda strategy: None)  # it needs the mean alone

    class Keeper(RunState):
        """Notes each round's model, to compare with the released one."""

        models: list[Any] = []  # noqa: RUF012

        def save(self, progress: Progress, record: Any) -> None:
            super().save(progress, record)
            self.models.append(progress.arrays)

    with federation.rounds(whole, state=Keeper) as started:
        assert isinstance(started.store, Keeper)
        server_app.serve(started.grid._grid, federation.experiment, started.store)  # type: ignore[attr-defined]
        result = started.store.result
    assert len(read_rounds(whole / "rounds.jsonl")) == rounds
    assert result["model_round"] == released
    assert result["outcome"] == ("stopped early" if rounds < 6 or released < 6 else "finished")
    model = load_file(whole / "model.safetensors")
    assert all(np.array_equal(model[name], array) for name, array in Keeper.models[released].items())
    assert read_rounds(whole / "rounds.jsonl")[-1]["metrics"] == {
        "accuracy": pytest.approx(accuracies[rounds - 1])
    }


def test_early_stopping_survives_a_restart(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path / "sites", "evaluation.metrics=true", "evaluation.patience=2", "training.rounds=6"
    )
    script = partial(Scripted, [0.5, 0.9, 0.8, 0.7, 0.6, 0.5])
    run_with_stops(federation, tmp_path / "run", script, StopsAfterEachRound)
    assert len(rows(tmp_path / "run")) == 4


def test_a_monitor_that_never_comes_is_refused(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path / "sites", "evaluation.metrics=true", "evaluation.patience=2", "evaluation.monitor=auroc"
    )
    with (
        federation.rounds(tmp_path / "run") as rounds,
        pytest.raises(ConfigError, match=r"evaluation\.monitor: must be one of the task's: accuracy, loss"),
    ):
        server_app.serve(rounds.grid._grid, federation.experiment, rounds.store)  # type: ignore[attr-defined, arg-type]


@pytest.mark.parametrize(
    ("sums", "expected"),
    [
        ({"accuracy": 8.0, "records": 10.0}, {"accuracy": 0.8}),
        ({"accuracy": 12.0, "loss": -1.0, "records": 10.0}, {"accuracy": 1.0, "loss": 0.0}),
        ({"accuracy": 8.0, "records": 0.0}, {}),
        ({"accuracy": 8.0, "records": -3.0}, {}),
        ({"accuracy": 8.0, "records": float("nan")}, {}),
        ({}, {}),
    ],
)
def test_metrics_are_means_over_records(sums: dict[str, float], expected: dict[str, float]) -> None:
    assert means(sums) == expected
