"""Which of Flower's strategies work over the secure sum: all that need the mean alone, and no other."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy

from client.bridge import SecureClientApp
from server.bridge import secure
from simulations.local_grid import LocalGrid
from strategies.mean_only import MEAN_ONLY, REASONS, check_mean_only
from strategies.secure_grid import SecureAggregationGrid
from tacit.errors import ConfigError
from tests.unit.bridged_app import federation, initial, numpy, start, terms, toy

SERVED: dict[str, Any] = {
    "FedAvg": lambda: flower.FedAvg(),
    "FedProx": lambda: flower.FedProx(proximal_mu=0.5),
    "FedAvgM": lambda: flower.FedAvgM(server_learning_rate=0.8, server_momentum=0.5),
    "FedAdagrad": lambda: flower.FedAdagrad(eta=0.1, tau=0.1),
    "FedAdam": lambda: flower.FedAdam(eta=0.1, tau=0.1, beta_1=0.5, beta_2=0.9),
    "FedYogi": lambda: flower.FedYogi(eta=0.1, tau=0.1, beta_1=0.5, beta_2=0.9),
}

DP = {"noise_multiplier": 1.0, "clipping_norm": 1.0, "num_sampled_clients": 4}
ADAPTIVE = {"noise_multiplier": 0.1, "num_sampled_clients": 4}
REFUSED: dict[str, Any] = {
    "Krum": lambda: flower.Krum(num_malicious_nodes=1),
    "MultiKrum": lambda: flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2),
    "Bulyan": lambda: flower.Bulyan(num_malicious_nodes=0),
    "FedMedian": lambda: flower.FedMedian(),
    "FedTrimmedAvg": lambda: flower.FedTrimmedAvg(beta=0.1),
    "QFedAvg": lambda: flower.QFedAvg(client_learning_rate=0.1),
    "FedXgbBagging": lambda: flower.FedXgbBagging(),
    "FedXgbCyclic": lambda: flower.FedXgbCyclic(),
    "DifferentialPrivacyServerSideFixedClipping": lambda: flower.DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), **DP
    ),
    "DifferentialPrivacyClientSideFixedClipping": lambda: flower.DifferentialPrivacyClientSideFixedClipping(
        FedAvg(), **DP
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": lambda: (
        flower.DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), **ADAPTIVE)
    ),
    "DifferentialPrivacyClientSideAdaptiveClipping": lambda: (
        flower.DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), **ADAPTIVE)
    ),
}


class Louder(FedAdam):
    """Replaces what has nothing to do with aggregation."""

    def summary(self) -> None:
        super().summary()


class Halved(FedAvg):
    """Replaces the aggregation, by what needs the mean only."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        return ArrayRecord([numpy(arrays)["w"] / 2]), metrics


class Stricter(flower.Krum):
    """A strategy of somebody's own on top of one that needs single updates."""


class FromScratch(Strategy):
    """Of a kind that nobody knows."""

    configure_train = configure_evaluate = lambda self, *args: []
    aggregate_train = lambda self, *args: (None, None)  # noqa: E731
    aggregate_evaluate = summary = lambda self, *args: None


def test_every_strategy_of_flower_is_served_or_refused_by_name() -> None:
    known = {kind.__name__ for kind in MEAN_ONLY} | set(REASONS)
    assert known == set(flower.__all__) - {"Strategy", "Result"}
    assert set(SERVED) == {kind.__name__ for kind in MEAN_ONLY}
    assert set(REFUSED) == set(REASONS)


@pytest.mark.parametrize("name", SERVED)
def test_a_strategy_of_flower_gives_over_the_secure_sum_what_it_gives_on_plain_messages(
    name: str, tmp_path: Path
) -> None:
    agreed = terms(weights="declared", train_metrics={"train_loss": 1.0}, evaluate_metrics={"eval_loss": 8.0})
    plain = start(SERVED[name](), toy(ClientApp()))
    bridged = start(SERVED[name](), toy(SecureClientApp()), federation(tmp_path, agreed))
    a, b = numpy(plain.arrays), numpy(bridged.arrays)
    # A coordinate of each of the four vectors is one step off at most; FedAdam and its like divide by tau = 0.1.
    step = 2.0 / 2**20
    assert np.abs(a["w"] - b["w"]).max() < 200 * step
    assert np.abs(a["w"]).max() > 0.05, "it has moved"
    for kind, metric in (("train", "train_loss"), ("evaluate", "eval_loss")):
        seen = [getattr(result, f"{kind}_metrics_clientapp") for result in (plain, bridged)]
        assert [list(rounds) for rounds in seen] == [[1, 2, 3]] * 2
        for number in (1, 2, 3):
            assert seen[1][number][metric] == pytest.approx(seen[0][number][metric], abs=1e-3)
            assert list(seen[1][number]) == [metric], "what is not agreed on does not travel"


@pytest.mark.parametrize("name", REFUSED)
def test_a_strategy_that_needs_more_than_the_mean_is_refused_by_name_and_reason(name: str) -> None:
    strategy = REFUSED[name]()
    assert type(strategy).__name__ == name
    nobody: Any = None
    for refusing in (
        lambda: check_mean_only(strategy),
        lambda: secure(LocalGrid(ClientApp(), {}, 4), strategy),
        lambda: SecureAggregationGrid(LocalGrid(ClientApp(), {}, 4), strategy, nobody, nobody),
    ):
        with pytest.raises(ConfigError) as refusal:
            refusing()
        assert str(refusal.value) == f"strategy: {name} {REASONS[name]}"


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (lambda: Stricter(num_malicious_nodes=1), "Stricter compares single updates"),
        (Halved, "not known that Halved needs nothing but the mean; say mean_only=True"),
        (FromScratch, "not known that FromScratch needs nothing but the mean"),
    ],
    ids=["of Krum", "another aggregation", "from scratch"],
)
def test_a_subclass_is_refused_where_it_is_not_known_what_it_needs(strategy: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_mean_only(strategy())


def test_a_subclass_with_the_aggregation_of_its_parent_is_served() -> None:
    check_mean_only(Louder())


def test_mean_only_takes_the_word_of_the_caller(tmp_path: Path) -> None:
    folder = federation(tmp_path, terms())
    with pytest.raises(ConfigError):
        start(Halved(fraction_evaluate=0.0), toy(SecureClientApp()), folder)
    whole, half = (
        numpy(start(s, toy(SecureClientApp()), folder, num_rounds=1, mean_only=True).arrays)
        for s in (FedAvg(fraction_evaluate=0.0), Halved(fraction_evaluate=0.0))
    )
    assert np.allclose(half["0"], whole["w"] / 2, atol=1e-4)
    assert list(initial()) == ["w", "count"]
