"""Each strategy that `[strategy] name` may say, through the conformance tests; and the page of what each needs."""

import re
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np
import pytest
import torch

from client.normalised import accumulated, factors
from strategies.factory import CLASSES, make_strategy
from strategies.mean_only import MEAN_ONLY, OWN, REASONS, check_mean_only
from tacit import algorithms, config
from tacit.errors import ConfigError, RunFailed
from tests.unit.small_federation import Federation, Misbehaving, refusal
from tests.unit.strategy_conformance import PLAIN, TEXT, StrategyConformance, Vector, flat, strategies


@pytest.mark.slow
class TestFedAvg(StrategyConformance):
    settings = ("strategy.name=fedavg",)


@pytest.mark.slow
class TestFedProx(StrategyConformance):
    settings = ("strategy.name=fedprox", "strategy.proximal_mu=0.5")

    def server(self, delta: Vector) -> Vector:
        # With the pull, a step of rate r goes (1 - r (1 + mu)) of the way that is left, to a point nearer by.
        pulled = (1 - (1 - 0.3 * 1.5) ** 2) / 1.5
        return delta * pulled / (1 - 0.7**2)


@pytest.mark.slow
class TestFedAvgM(StrategyConformance):
    settings = ("strategy.name=fedavgm", "strategy.server_learning_rate=0.8", "strategy.server_momentum=0.5")
    until = ((), 30, 2e-4)

    def server(self, delta: Vector) -> Vector:
        return 0.8 * delta


@pytest.mark.slow
class TestFedAdagrad(StrategyConformance):
    settings = ("strategy.name=fedadagrad", "strategy.server_learning_rate=0.2", "strategy.tau=0.1")
    gain = 10.0
    until = (("strategy.server_learning_rate=0.5",), 60, 2e-3)

    def server(self, delta: Vector) -> Vector:
        step: Vector = 0.2 * delta / (np.abs(delta) + 0.1)
        return step


class TestFedAdam(StrategyConformance):
    settings = ("strategy.name=fedadam", "strategy.server_learning_rate=0.1", "strategy.tau=0.1")
    gain = 10.0
    until = (("strategy.beta_1=0.5", "strategy.beta_2=0.9"), 30, 1e-3)

    def server(self, delta: Vector) -> Vector:
        rate = 0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)  # as Flower counts: round 1 is the second step
        step: Vector = rate * 0.1 * delta / (np.sqrt(0.01) * np.abs(delta) + 0.1)
        return step


@pytest.mark.slow
class TestFedYogi(StrategyConformance):
    settings = ("strategy.name=fedyogi", "strategy.server_learning_rate=0.1", "strategy.tau=0.1")
    gain = 10.0
    until = (("strategy.beta_1=0.5", "strategy.beta_2=0.9"), 30, 1e-3)

    def server(self, delta: Vector) -> Vector:
        step: Vector = 0.1 * 0.1 * delta / (np.sqrt(0.01) * np.abs(delta) + 0.1)
        return step


STEPS = np.array([1, 4, 2, 1, 4, 2])


@pytest.mark.slow
class TestFedNova(StrategyConformance):
    """Sites that take 1, 4 and 2 steps."""

    settings = ("strategy.name=fednova", "training.local_steps=4", "partition.steps=[1, 4, 2]")
    # The smaller the steps, the less it matters where within a round a gradient is taken.
    until = (("training.learning_rate=0.05",), 60, 0.03)

    def updates(self, optima: Vector) -> Vector:
        factors = STEPS.mean() / STEPS
        sent: Vector = ((1 - 0.7**STEPS) * factors)[:, None] * optima
        return sent


class TestFedPer(StrategyConformance):
    settings = ("strategy.name=fedper", 'strategy.personal=["h*"]')
    size = 2


@pytest.mark.slow
class TestFedBN(StrategyConformance):
    settings = ("strategy.name=fedbn", "task.kind=tests.unit.quadratic_task:Normed")


@pytest.mark.slow
class TestDitto(StrategyConformance):
    settings = ("strategy.name=ditto",)


class TestScaffold(StrategyConformance):
    settings = ("strategy.name=scaffold", "strategy.server_learning_rate=0.9")
    gain = 10.0
    until = ((), 30, 1e-3)

    def server(self, delta: Vector) -> Vector:
        return 0.9 * delta


@pytest.mark.slow
class TestDpFtrl(StrategyConformance):
    """Without noise, and with everybody in each round; `test_dp_ftrl.py` has the rest."""

    settings = (
        "strategy.name=dp_ftrl", "strategy.bands=1",
        "strategy.server_learning_rate=0.8", "strategy.server_momentum=0.5",
    )  # fmt: skip
    until = ((), 30, 2e-4)

    def server(self, delta: Vector) -> Vector:
        return 0.8 * delta


class TestFedBuff(StrategyConformance):
    """With one round at a time; `test_fedbuff.py` has the rest."""

    settings = ("strategy.name=fedbuff", "strategy.cohorts_at_once=1", "strategy.server_learning_rate=0.8")
    until = ((), 20, 2e-4)

    def server(self, delta: Vector) -> Vector:
        return 0.8 * delta


class TestKrum(StrategyConformance):
    settings = ("strategy.name=krum",)
    num_selected: ClassVar[int] = 1

    def aggregate(self, deltas: Vector) -> Vector:
        """Blanchard et al. 2017, section 4: the updates with the least sum of distances to their n - f - 2 nearest."""
        squares = ((deltas[:, None] - deltas[None]) ** 2).sum(axis=2)
        nearest = np.sort(squares, axis=1)[:, 1 : len(deltas) - 1 - 2 + 1]
        chosen = np.argsort(nearest.sum(axis=1))[: self.num_selected]
        mean: Vector = deltas[chosen].mean(axis=0)
        return mean


@pytest.mark.slow
class TestMultiKrum(TestKrum):
    settings = ("strategy.name=multikrum", "strategy.num_selected=3")
    num_selected = 3


@pytest.mark.slow
class TestFedMedian(StrategyConformance):
    settings = ("strategy.name=fedmedian",)

    def aggregate(self, deltas: Vector) -> Vector:
        median: Vector = np.median(deltas, axis=0)
        return median


@pytest.mark.slow
class TestFedTrimmedAvg(StrategyConformance):
    settings = ("strategy.name=fedtrimmedavg",)

    def aggregate(self, deltas: Vector) -> Vector:
        mean: Vector = np.sort(deltas, axis=0)[1:-1].mean(axis=0)
        return mean


def test_every_name_has_a_class_of_flower_its_keys_and_the_conformance_tests() -> None:
    names = set(get_args(algorithms.Name))
    assert names == set(CLASSES) == set(algorithms.KEYS) == set(strategies(globals()))
    assert {name for name in names if CLASSES[name][0] not in (*MEAN_ONLY, *OWN)} == set(
        algorithms.SINGLE_UPDATES
    )


def test_the_page_says_of_every_strategy_what_it_needs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
    rows = {
        (kind, name.strip("`"), needs)
        for kind, name, needs in re.findall(
            r"^\| (\w+) \| (`\w+`|-) \| (the mean only|more: .*?) \|$", page, re.M
        )
    }
    needs = {kind.__name__: "the mean only" for kind in (*MEAN_ONLY, *OWN)}
    needs |= {kind: f"more: {reason}" for kind, reason in REASONS.items()}
    named = {(kind.__name__, name, needs[kind.__name__]) for name, (kind, _) in CLASSES.items()}
    others = set(needs) - {kind for kind, _, _ in named}
    assert rows == named | {(kind, "-", needs[kind]) for kind in others}


@pytest.mark.parametrize("name", sorted(algorithms.SINGLE_UPDATES))
def test_under_a_secure_sum_a_strategy_that_needs_single_updates_is_refused_by_name_and_reason(
    name: str,
) -> None:
    reason = algorithms.SINGLE_UPDATES[name]
    for settings in ((), ("secure_aggregation.engine=ideal",)):
        with pytest.raises(ConfigError) as refused:
            config.loads(TEXT, overrides=(f"strategy.name={name}", *settings))
        assert f'strategy.name = "{name}" {reason}, and a secure sum shows none' in str(refused.value)
    central = "privacy.client={epsilon=5.0, delta=0.01, noise='central'}"
    with pytest.raises(ConfigError, match=r"the noise of privacy\.client is for their sum alone"):
        config.loads(TEXT, overrides=(f"strategy.name={name}", PLAIN, central))
    allowed = make_strategy(config.loads(TEXT, overrides=(f"strategy.name={name}", PLAIN)))
    with pytest.raises(ConfigError, match=reason):
        check_mean_only(allowed)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("strategy.name=fedavg", "strategy.tau=0.1"), 'tau belongs to name = "fedadagrad" or "fedadam"'),
        (("strategy.name=fedadam", "strategy.server_momentum=0.1"), 'server_momentum belongs to name = "fedavgm"'),
        (("strategy.name=fedadam", "strategy.beta_2=1.0"), "strategy.beta_2: input should be less than 1"),
        (("strategy.name=fedadam", "strategy.tau=0.0"), "strategy.tau: input should be greater than 0"),
        (("strategy.name=fedavgm", "strategy.server_momentum=1.0"), "strategy.server_momentum: input"),
        (("strategy.name=krum", PLAIN, "strategy.num_malicious=2"), "num_malicious = 2 needs 7 updates; 5 are"),
        (("strategy.name=multikrum", PLAIN, "strategy.num_selected=5"), "num_selected is above the 4 updates"),
        (("strategy.name=fedtrimmedavg", PLAIN, "strategy.trimmed_share=0.1"), "leaves out none of 5 updates"),
        (("strategy.name=fedtrimmedavg", PLAIN, "strategy.trimmed_share=0.5"), "should be less than 0.5"),
        (("strategy.name=fedmedian", PLAIN, "strategy.weights=declared"), 'weights must be "equal"'),
    ],
)  # fmt: skip
def test_a_key_out_of_its_range_or_of_another_strategy_is_refused(
    overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        config.loads(TEXT, overrides=overrides)
    assert said in str(refused.value)


def needed(name: str) -> tuple[str, ...]:
    return ('strategy.personal=["head"]',) if name == "fedper" else ()


def test_what_an_experiment_does_not_say_is_the_strategys_default_and_reaches_flower() -> None:
    made = {
        name: vars(
            make_strategy(config.loads(TEXT, overrides=(f"strategy.name={name}", PLAIN, *needed(name))))
        )
        for name in CLASSES
    }
    for name, (_, names) in CLASSES.items():
        for theirs, ours in names.items():
            assert made[name][theirs] == algorithms.KEYS[name][ours], (name, ours)
        elsewhere = {"personal", "personal_mu", "bands", "min_separation"}
        assert set(names.values()) == set(algorithms.KEYS[name]) - elsewhere, name
    said = config.loads(TEXT, overrides=("strategy.name=fedadam", "strategy.beta_1=0.3"))
    assert vars(make_strategy(said))["beta_1"] == 0.3


@pytest.mark.slow
def test_fednova_comes_to_the_common_optimum_where_fedavg_comes_to_that_of_the_sites_with_many_steps(
    tmp_path: Path,
) -> None:
    wrong = {}
    for name in ("fedavg", "fednova"):
        settings = TestFedNova.settings[1:] + TestFedNova.until[0] + ("training.rounds=60", PLAIN)
        federation = Federation(tmp_path / name, f"strategy.name={name}", *settings, text=TEXT)
        optimum = TestFedNova().optima(federation).mean(axis=0)
        wrong[name] = float(np.abs(flat(federation.run(tmp_path / name / "run")) - optimum).max())
    assert wrong["fednova"] < 0.2 * wrong["fedavg"]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_accumulated_step_is_how_far_a_constant_gradient_of_1_takes_torchs_sgd(momentum: float) -> None:
    for steps in (1, 2, 7):
        w = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=1.0, momentum=momentum)
        for _ in range(steps):
            w.grad = torch.ones(1)
            optimizer.step()
        assert -w.item() == pytest.approx(accumulated(steps, momentum), rel=1e-5)


def test_factors_are_public_and_leave_the_weighted_mean_of_equal_gradients_as_it_was() -> None:
    """Wang et al. 2020, eq. 7: with the same gradient everywhere all updates are alike, tau_eff long."""
    sites = [{"label": str(i), "rows": 10 + 10 * i, "steps": 1 + i} for i in range(4)]
    made = config.loads(TEXT, overrides=("strategy.name=fednova", "training.local_steps=4", PLAIN))
    for weights in ("equal", "declared"):
        named = made.with_tables(
            federation={"sites": sites}, strategy={"name": "fednova", "weights": weights}
        )
        alike = {label: f * (1 + int(label)) for label, f in factors(named).items()}
        rows = np.array([10, 20, 30, 40]) if weights == "declared" else np.ones(4)
        effective = float((rows * np.arange(1, 5)).sum() / rows.sum())
        assert alike == pytest.approx(dict.fromkeys("0123", effective))
    assert factors(named.with_tables(strategy={"name": "fedavg"})) == {}


def test_no_site_takes_more_steps_than_a_round_is_charged_for() -> None:
    for more in ("partition.steps=[3]", 'federation.sites=[{label="a", rows=5, steps=3}]'):
        with pytest.raises(ConfigError, match=r"training\.local_steps = 2 is what a round is charged for"):
            config.loads(TEXT, overrides=(more, PLAIN))
    with pytest.raises(ConfigError, match=r"fednova.*sgd"):
        config.loads(TEXT, overrides=("strategy.name=fednova", "training.optimizer=adam"))


def test_a_round_with_fewer_updates_than_the_strategy_reckons_with_ends_the_run(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "sites", "strategy.name=krum", PLAIN, text=TEXT)
    busy = Misbehaving(
        lambda m, real, site: refusal(m, "busy") if m.metadata.message_type == "train" and site < 2 else None
    )
    with pytest.raises(RunFailed, match=r"4 of 6 updates arrived, the strategy needs 5; .*busy \(2\)"):
        federation.run(tmp_path / "run", app=busy)


@pytest.mark.parametrize("name", ["krum", "multikrum", "fedmedian", "fedtrimmedavg"])
def test_one_update_that_is_made_to_harm_moves_the_mean_but_not_a_robust_model(
    name: str, tmp_path: Path
) -> None:
    """The same site lies under each strategy: its records are moved far away."""
    models = {}
    for chosen in ("fedavg", name):
        settings = (f"strategy.name={chosen}", PLAIN, "training.rounds=8", "partition.kind=iid")
        federation = Federation(tmp_path / chosen, *settings, text=TEXT)
        file = federation.sites / "0" / "data.csv"
        optima = TestFedAvg().optima(federation)
        moved = re.sub(r"^(\d+\.?\d*),", "400.0,", file.read_text(), flags=re.M)
        file.write_text(moved)
        models[chosen] = flat(federation.run(tmp_path / chosen / "run"))
    honest = optima[1:].mean(axis=0)
    assert np.abs(models["fedavg"] - honest).max() > 2
    assert np.abs(models[name] - honest).max() < 0.5
