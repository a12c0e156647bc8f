"""SCAFFOLD: its server's variate is the mean of the sites', from updates alone; and it pays where sites differ."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message

from client.kept import newest
from client.rate import FILE as RATE_FILE
from server.state import read_rounds
from simulations.cohort import CohortExecutor
from strategies.rounds import Progress
from tacit import config
from tacit.encoding import VARIATE
from tacit.errors import ConfigError
from tacit.tasks import load_task
from tacit.tasks.weights import build_model, load_arrays
from tests.unit.quadratic_task import points_of
from tests.unit.small_federation import Federation, Misbehaving
from tests.unit.strategy_conformance import PLAIN, STEP, TEXT, flat

SCAFFOLD = "strategy.name=scaffold"
IDEAL = "secure_aggregation.engine=ideal"
SOME = ("training.clients_per_round=4", "secure_aggregation.max_dropouts=0", "training.rounds=6")


@pytest.mark.parametrize("way", [(), (IDEAL,), (PLAIN,)], ids=["protocol", "ideal", "plain"])
@pytest.mark.parametrize("clip", [10.0, 0.3], ids=["nothing cut", "updates cut"])
def test_the_servers_variate_is_the_weighted_mean_of_the_clients_own_to_the_encoding_step_whoever_takes_part(
    tmp_path: Path, way: tuple[str, ...], clip: float
) -> None:
    settings = (SCAFFOLD, "strategy.weights=declared", f"secure_aggregation.update_clip={clip}", *SOME, *way)
    federation = Federation(tmp_path / "sites", *settings, text=TEXT)
    with federation.rounds(tmp_path / "run") as rounds:
        rounds.run(federation.initial())
        server = flat(rounds.strategy.variate)  # type: ignore[attr-defined]
    cohorts = [row["cohort"] for row in read_rounds(tmp_path / "run" / "rounds.jsonl")]
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    own = [newest(federation.sites / str(i)) for i in range(6)]
    rows = np.array([site.rows for site in federation.experiment.federation.sites], dtype=np.float64)
    vectors = np.array([np.zeros(3) if a is None else flat({n: a[n] for n in ("w", "head")}) for a in own])
    mean = (rows[:, None] * vectors).sum(axis=0) / rows.sum()
    assert np.abs(vectors).max() > 0.05
    assert np.abs(server - mean).max() <= 1e-5 + 6 * 6 * STEP


def test_a_steps_correction_is_the_common_variate_minus_the_sites_own(tmp_path: Path) -> None:
    """Karimireddy et al. 2020, algorithm 1, on a loss whose local steps are known: two rounds by hand."""
    federation = Federation(tmp_path / "sites", SCAFFOLD, PLAIN, "training.rounds=2", text=TEXT)
    found = flat(federation.run(tmp_path / "run"))
    files = [federation.sites / str(i) / "data.csv" for i in range(6)]
    optima = np.array([points_of(file, "train").astype(np.float64).mean(axis=0) for file in files])
    x, c, own = np.zeros(3), np.zeros(3), np.zeros((6, 3))
    for _ in range(2):
        y = np.tile(x, (6, 1))
        for _ in range(2):
            y -= 0.3 * ((y - optima) + c - own)
        after = own - c + (x - y) / (2 * 0.3)
        c = c + (after - own).mean(axis=0)
        x, own = x + (y - x).mean(axis=0), after
    assert np.abs(found - x).max() < 1e-5


def test_a_server_that_sends_one_client_another_variate_gets_nothing_from_it(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "sites", SCAFFOLD, "secure_aggregation.max_dropouts=2", text=TEXT)

    def lie(message: Message, real: Any, site: int) -> Message | None:
        if VARIATE in message.content and site == 2:
            honest = message.content.array_records[VARIATE]
            message.content[VARIATE] = ArrayRecord(
                {n: Array(a.numpy() + np.float32(1)) for n, a in honest.items()}
            )
        if VARIATE in message.content and site == 4:
            del message.content[VARIATE]
        return None

    with federation.rounds(tmp_path / "run", app=Misbehaving(lie)) as rounds:
        rounds.next_round(Progress(0, federation.initial()))
        facts = rounds.grid.facts  # type: ignore[attr-defined]
    assert set(facts.survivors) == {federation.labels[i] for i in (0, 1, 3, 5)}
    assert sum(facts.refusals.values()) == 2


@pytest.mark.parametrize(
    ("spoil", "way"),
    [
        (lambda record: None, "missing"),
        (lambda record: {**record, "more": np.zeros(1, np.float32)}, "another array"),
        (lambda record: {name: a * np.float32(np.nan) for name, a in record.items()}, "not finite"),
        (lambda record: {name: a + np.float32(1e6) for name, a in record.items()}, "too long"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_variate_that_no_update_could_be_is_refused_by_code(tmp_path: Path, spoil: Any, way: str) -> None:
    federation = Federation(tmp_path / "sites", SCAFFOLD, PLAIN, "training.rounds=1", text=TEXT)

    def lie(message: Message, real: Any, site: int) -> Message | None:
        if VARIATE not in message.content or site != 1:
            return None
        honest = message.content.array_records[VARIATE]
        spoilt = spoil({name: array.numpy() for name, array in honest.items()})
        del message.content[VARIATE]
        if spoilt is not None:
            message.content[VARIATE] = ArrayRecord({name: Array(a) for name, a in spoilt.items()})
        answer: Message = real()
        message.content[VARIATE] = honest  # the other sites' messages have the same content
        return answer

    federation.run(tmp_path / "run", app=Misbehaving(lie))
    [row] = read_rounds(tmp_path / "run" / "rounds.jsonl")
    assert row["refusals"] == {"variate": 1}, way
    counted = [(federation.sites / str(site) / RATE_FILE).exists() for site in range(len(federation.labels))]
    assert counted == [site != 1 for site in range(len(federation.labels))]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.optimizer=adam", "scaffold.*sgd"),
        ("training.momentum=0.5", "scaffold.*without momentum"),
        ("training.schedule=cosine", "scaffold.*same in every round"),
        ('training.rate_factors={"0.*"=0.5}', "scaffold.*no rate_factors"),
        ("partition.steps=[1, 2]", "same number of steps"),
    ],
)
def test_what_the_variate_does_not_follow_from_is_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config.loads(TEXT, overrides=(SCAFFOLD, override))


SKEWED = """
name = "skewed"
[partition]
kind = "dirichlet"
alpha = 0.1
num_clients = 10
min_rows = 4
[task.model]
name = "logistic"
[training]
rounds = 20
local_steps = 40
sampling_rate = 1.0
learning_rate = 1.0
[secure_aggregation]
engine = "ideal"
update_clip = 100.0
[checkpoints]
keep = 0
[simulation]
baselines = false
"""


def loss_of(federation: Federation, arrays: Any) -> float:
    """The mean over the sites of their mean losses: what equal weights minimise."""
    task = load_task(federation.experiment)
    built = build_model(task, private=False)
    load_arrays(built, arrays)
    losses = []
    with torch.no_grad():
        for i in range(len(federation.labels)):
            records = task.read(federation.sites / str(i) / "data.csv", "train")
            losses.append(float(task.loss(built(records.features), records.targets).mean()))
    return float(np.mean(losses))


def rounds_until(federation: Federation, folder: Path, target: float) -> int:
    """The first round whose model has at most this loss; one more than there are where none has."""
    first = federation.experiment.training.rounds + 1
    with CohortExecutor() as executor, federation.rounds(folder, executor=executor) as rounds:
        progress = rounds.resumed(federation.initial())
        while progress.round < federation.experiment.training.rounds:
            progress = rounds.next_round(progress)
            if loss_of(federation, progress.arrays) <= target:
                first = progress.round
                break
    return first


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_under_dirichlet_01_scaffold_comes_to_a_loss_in_two_thirds_of_fedavgs_rounds_or_fewer(
    tmp_path: Path, seed: int
) -> None:
    """Ten sites, forty local steps: to a mean loss of 0.06, on three draws of the split."""
    needed = {}
    for name in ("fedavg", "scaffold"):
        federation = Federation(tmp_path / name, f"strategy.name={name}", f"seed={seed}", text=SKEWED)
        needed[name] = rounds_until(federation, tmp_path / name / "run", 0.06)
    assert needed["fedavg"] <= 20
    assert needed["scaffold"] <= 2 / 3 * needed["fedavg"], needed
