"""What every strategy passes, on the real apps and grids, over a problem whose optimum is known.

A class for a strategy says what its server does in the first round, and where the run has to come to.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import Array, Message
from numpy.typing import NDArray

from server.state import RunState, read_rounds
from simulations.cohort import train_cohort
from simulations.local_grid import LocalGrid
from strategies.factory import CLASSES
from strategies.mean_only import MEAN_ONLY, OWN
from strategies.rounds import Progress
from tests.unit.quadratic_task import points_of
from tests.unit.small_federation import Federation, Misbehaving, refusal, same

TEXT = """
name = "convex"
[task]
kind = "tests.unit.quadratic_task:Quadratic"
[partition]
kind = "dirichlet"
alpha = 0.3
num_clients = 6
[training]
rounds = 3
local_steps = 2
sampling_rate = 1.0
learning_rate = 0.3
[secure_aggregation]
max_dropouts = 1
precision_bits = 20
deadline_seconds = 5.0
[checkpoints]
keep = 2
[simulation]
baselines = false
"""
PLAIN, IDEAL = "secure_aggregation.enabled=false", "secure_aggregation.engine=ideal"
STEP = 10.0 / 2**20  # of the encoding: one integer unit
MOVED = 1 - 0.7**2  # share of the way to its own optimum that a site goes in a round

Vector = NDArray[np.float64]


class Stopped(Exception):
    """Stands for `kill -9` of the server."""


class StopsAfterEachRound(RunState):
    """Dies when a round is stored, and at its first start in the middle of each round."""

    last = 3

    def save(self, progress: Progress, record: Any) -> None:
        if record is not None and self.starts == 2 * progress.round - 1:
            raise Stopped
        super().save(progress, record)
        if record is not None and progress.round < self.last:
            raise Stopped


class ArrivesReversed(LocalGrid):
    """The answers come in the opposite order."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return reversed(list(super().pull_messages(message_ids)))


class StrategyConformance:
    """The base class.

    Attributes:
        settings: of `[strategy]`.
        size: of the three coordinates, how many travel.
        gain: how many times as large a difference of the mean may become in the model of three rounds.
        until: the settings, and number of rounds, of a run that comes close to the optimum, and how close.
    """

    settings: ClassVar[tuple[str, ...]]
    size: ClassVar[int] = 3
    gain: ClassVar[float] = 3.0
    until: ClassVar[tuple[tuple[str, ...], int, float]] = ((), 12, 2e-4)

    # -- what a subclass says ----------------------------------------------------------------------------------------

    def server(self, delta: Vector) -> Vector:
        """How far the first round moves the model, of which the aggregate of the updates is `delta`."""
        return delta

    def updates(self, optima: Vector) -> Vector:
        """What each site sends in the first round, given each one's optimum; both of shape (sites, 3)."""
        sent: Vector = MOVED * optima
        return sent

    def aggregate(self, deltas: Vector) -> Vector:
        """Of several updates, shape (clients, 3)."""
        mean: Vector = deltas.mean(axis=0)
        return mean

    # -- the federations ---------------------------------------------------------------------------------------------

    @pytest.fixture(scope="class")
    @classmethod
    def made(cls, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Federation]:
        """The same sites without a secure sum, with the ideal one and with the protocol, where it may be asked."""
        ways = {"plain": (PLAIN,), "ideal": (IDEAL,), "protocol": ()}
        return {
            way: Federation(tmp_path_factory.mktemp(way), *cls.settings, *ways[way], text=TEXT)
            for way in (ways if cls.needs_the_mean_only() else ("plain",))
        }

    @classmethod
    def needs_the_mean_only(cls) -> bool:
        name = cls.settings[0].partition("=")[2]
        return CLASSES[name][0] in (*MEAN_ONLY, *OWN)

    def optima(self, federation: Federation) -> Vector:
        """Of each site, shape (sites, 3)."""
        files = [federation.sites / str(i) / "data.csv" for i in range(len(federation.labels))]
        return np.array([points_of(file, "train").astype(np.float64).mean(axis=0) for file in files])

    def expected(self, federation: Federation, sites: Iterable[int]) -> Vector:
        """The model after round 1, from zeros, with the updates of these sites."""
        return self.server(self.aggregate(self.updates(self.optima(federation))[list(sites)]))

    # -- the tests ---------------------------------------------------------------------------------------------------

    def test_of_one_client_the_update_is_exact(self, made: Mapping[str, Federation], tmp_path: Path) -> None:
        with made["plain"].rounds(tmp_path) as rounds:
            replies = one_round(rounds, made["plain"])
            record, _ = rounds.strategy.aggregate_train(1, replies[2:3])
        assert record is not None
        expected = self.server(self.updates(self.optima(made["plain"]))[2])
        np.testing.assert_allclose(flat(record), expected[: self.size], rtol=0, atol=1e-6)

    def test_the_order_of_the_replies_changes_nothing(
        self, made: Mapping[str, Federation], tmp_path: Path
    ) -> None:
        models = []
        for name, order in (("a", [0, 1, 2, 3, 4, 5]), ("b", [4, 2, 0, 5, 1, 3])):
            with made["plain"].rounds(tmp_path / name) as rounds:
                replies = one_round(rounds, made["plain"])
                record, _ = rounds.strategy.aggregate_train(1, [replies[i] for i in order])
                assert record is not None
                models.append(flat(record))
        np.testing.assert_allclose(*models, rtol=0, atol=1e-6)  # sums of floats in another order
        for way, federation in made.items():
            straight = federation.run(tmp_path / way / "straight")
            assert same(straight, federation.run(tmp_path / way / "reversed", grid=ArrivesReversed)), way

    @pytest.mark.parametrize("gone", [(), (3,)], ids=["nobody gone", "one gone"])
    def test_the_model_is_that_of_the_paper_over_whoever_has_arrived(
        self, made: Mapping[str, Federation], tmp_path: Path, gone: tuple[int, ...]
    ) -> None:
        def what(message: Message, real: Any, site: int) -> Message | None:
            asked = message.metadata.message_type.startswith("train")
            return refusal(message, "busy") if asked and site in gone else None

        left = [i for i in range(6) if i not in gone]
        for way, federation in made.items():
            with federation.rounds(tmp_path / way, app=Misbehaving(what)) as rounds:
                start = Progress(0, federation.initial())
                after = rounds.next_round(start)
            wrong = np.abs(flat(after.arrays) - self.expected(federation, left)[: self.size]).max()
            assert wrong <= 1e-6 + (0 if way == "plain" else self.gain * STEP), way
            assert len(read_rounds(tmp_path / way / "rounds.jsonl")[0]["survivors"]) == len(left)

    def test_the_sum_of_the_protocol_the_ideal_one_and_plain_updates_give_one_model(
        self, made: Mapping[str, Federation], tmp_path: Path
    ) -> None:
        models = {way: federation.run(tmp_path / way) for way, federation in made.items()}
        assert np.abs(flat(models["plain"])).max() > 0.01, "it has moved"
        if not self.needs_the_mean_only():
            return
        whole = made["ideal"].run(tmp_path / "whole", executor=train_cohort)
        assert same(models["protocol"], models["ideal"])
        assert same(models["ideal"], whole)
        assert np.abs(flat(models["ideal"]) - flat(models["plain"])).max() <= self.gain * STEP

    def test_a_run_killed_in_and_after_each_round_gives_the_same_model(
        self, made: Mapping[str, Federation], tmp_path: Path
    ) -> None:
        for way in {"plain", "protocol"} & set(made):
            whole = made[way].run(tmp_path / way / "whole")
            for _ in range(10):
                try:
                    stopped = made[way].run(tmp_path / way / "stopped", state=StopsAfterEachRound)
                    break
                except Stopped:
                    pass
            assert same(whole, stopped), way

    def test_it_comes_to_the_optimum_that_is_known(
        self, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
    ) -> None:
        settings, rounds, bound = self.until
        federation = Federation(
            tmp_path_factory.mktemp("long"),
            *self.settings, *settings, PLAIN, f"training.rounds={rounds}", text=TEXT,
        )  # fmt: skip
        optimum = self.aggregate(self.optima(federation))
        assert np.abs(flat(federation.run(tmp_path)) - optimum[: self.size]).max() <= bound
        assert np.abs(optimum).max() > 0.05, "it is not where the run began"


def one_round(rounds: Any, federation: Federation) -> list[Message]:
    """The replies to round 1, in roster order."""
    messages = rounds.configure(1, federation.labels, federation.initial())
    replies: list[Message] = rounds.collect(messages)
    assert len(replies) == 6
    return replies


def flat(arrays: Mapping[str, Any]) -> Vector:
    """A model as one vector."""
    parts = (array.numpy() if isinstance(array, Array) else array for array in arrays.values())
    return np.concatenate([np.ravel(part).astype(np.float64) for part in parts])


def strategies(module: Mapping[str, Any]) -> Iterator[str]:
    """The names whose classes are in a module of tests."""
    for kind in module.values():
        if (
            isinstance(kind, type)
            and issubclass(kind, StrategyConformance)
            and kind is not StrategyConformance
        ):
            yield kind.settings[0].partition("=")[2]
