"""Which way predictions lean on concepts: directions without records, one bounded vector per record, and their sum."""

import math
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from client.evaluation import record_metrics
from client.statistics import scaled
from server.state import read_rounds
from simulations.cohort import CohortExecutor
from simulations.evaluate import Harness
from strategies.scaling import learn_scaling
from tacit import config
from tacit.encoding import encoder_of, metric_sensitivity
from tacit.errors import ConfigError
from tacit.privacy.plan import PrivacyPlan
from tacit.report.rows import learned_concepts
from tacit.tasks import Records, load_task
from tacit.tasks import concepts as module
from tacit.tasks.concepts import CHANCE, Concepts, concepts_of, scores_of
from tacit.tasks.importance import importance_of
from tacit.tasks.summed import riders, summed_of
from tests.unit.small_federation import TEXT, Federation
from tests.unit.trained_runs import TABLE, arrays_experiment

OLD, YOUNG = {"column": "age", "above": 65}, {"column": "age", "below": 50}
RICH, MALE = {"column": "amount of money", "above": 20.0}, {"column": "sex", "equals": "m"}
ALL = {"old": OLD, "young": YOUNG, "rich": RICH, "male": MALE}
AGE, WIDTH = 0, 8  # place of the age among the features, and how many there are


def experiment(concepts: dict[str, Any] = ALL, **evaluation: Any) -> config.Experiment:
    sites = [{"label": f"s{i}", "rows": 200} for i in range(3)]
    budget = {"record": {"epsilon": 5.0, "delta": 1e-4, "metrics_share": 0.2}}
    tables = {**TABLE, "privacy": budget, "evaluation": {"metrics": True, "concepts": concepts, **evaluation}}
    return config.parse({**tables, "federation": {"sites": sites}}, source="")


def declared(settings: config.Experiment) -> Concepts:
    found = concepts_of(settings, load_task(settings))
    assert found is not None
    return found


def records(rows: int, seed: int = 1) -> torch.Tensor:
    """Features as a site's file would give them, drawn evenly."""
    draws = np.random.default_rng(seed)
    numbers = draws.uniform(-1, 1, (2, rows))
    blocks = [numbers[0][:, None], np.zeros((rows, 1)), numbers[1][:, None]]
    blocks += [np.eye(n)[draws.integers(n, size=rows)] for n in (3, 2)]
    return torch.from_numpy(np.concatenate(blocks, axis=1)).float()


@lru_cache(maxsize=1)
def planted() -> nn.Module:
    """A model that has learned a label which follows from the age alone: over 60 or not."""
    torch.manual_seed(2)
    model, features = load_task(experiment()).model(), records(2000, seed=5)
    labels = (features[:, AGE] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features), labels).backward()
        optimizer.step()
    return model.eval()


def test_a_concept_that_decides_the_label_is_found_and_one_that_does_not_is_near_chance() -> None:
    concepts, features = declared(experiment()), records(400)
    sums = concepts.sums(planted(), planted()(features), Records(features, torch.zeros(400)))
    found = scores_of(concepts, sums, 0.0)
    assert found is not None and found.noise == (0.0, 0.0)
    old, young, rich, male = found.shares
    assert old[1] > 0.95 and old[0] < 0.05, "who is old is predicted as the second class"  # type: ignore[operator]
    assert young[1] < 0.05 and young[0] > 0.95  # type: ignore[operator]
    for share in (*rich, *male):
        assert share is not None and abs(share - 0.5) <= CHANCE


def test_the_surrogate_finds_the_column_that_decides_the_label() -> None:
    settings = experiment({}, explain="lime")
    importance = importance_of(settings, load_task(settings))
    assert importance is not None and importance.columns[0] == "age"
    shares = importance.shares(planted(), records(200)).mean(0)
    assert shares[0] > 0.8 and float(shares[1:].max()) < 0.1


def test_a_concept_without_meaning_is_within_chance_at_most_one_time_in_twenty() -> None:
    """A model that reads the age only; over seeds, how often a category seems to matter."""
    model = load_task(experiment()).model()
    with torch.no_grad():
        model[0].weight[:, 1:] = 0.0
    features, outside = records(50), 0
    for seed in range(100):
        concepts = Concepts(experiment({"male": MALE}).evaluation.concepts, *_parts(), seed)
        found = scores_of(concepts, concepts.sums(model, features, Records(features, features)), 0.0)
        assert found is not None
        outside += any(share is not None and abs(share - 0.5) > CHANCE for share in found.shares[0])
    assert outside <= 12  # of 100 draws of 5 %; more come once in two thousand tries


def _parts() -> tuple[Any, None]:
    return experiment().data.columns, None


@given(
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([0.0, 1e-20, 1.0, 1e30, float("inf"), float("nan")]),
    number=st.integers(1, 4),
)
def test_one_records_vector_over_all_concepts_has_a_norm_of_at_most_1_whatever_the_model_says_of_it(
    seed: int, scale: float, number: int
) -> None:
    concepts = declared(experiment(dict(list(ALL.items())[:number])))
    torch.manual_seed(seed)
    model, features = load_task(experiment()).model(), torch.randn(5, WIDTH) * scale
    with torch.no_grad():
        model[0].weight *= scale
        model[2].weight[seed % 2] = scale
    found = concepts.contributions(model, features)
    assert found.shape == (5, number, 2, 2) and bool((found >= 0).all())
    assert float(found.flatten(1).norm(dim=1).max()) <= math.sqrt(concepts.squared_norm) + 1e-9
    assert torch.allclose(found.sum((1, 2, 3)), torch.full((5,), number**0.5).double())


def test_directions_are_made_of_the_model_the_experiment_and_its_seed_alone_no_record_touches_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a record adds is the same beside any others, so that one record more moves the sum by its own vector."""
    torch.manual_seed(3)
    model, concepts = load_task(experiment()).model(), declared(experiment())
    features = records(60)
    together = concepts.contributions(model, features)
    alone = torch.cat([concepts.contributions(model, row[None]) for row in features])
    assert torch.equal(together, alone)
    monkeypatch.setattr(module, "AT_A_TIME", 7)
    sums = concepts.sums(model, features, Records(features, features))
    assert list(sums.values()) == pytest.approx(together.sum(0).flatten().tolist())
    other = Concepts(concepts.declared, concepts.schema, None, seed=concepts.seed + 1)
    assert not torch.equal(other.contributions(model, features), together)


def test_records_that_are_made_up_are_as_the_concept_says_and_alike_in_all_else() -> None:
    concepts, seen = declared(experiment()), []

    class Watch(nn.Identity):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            seen.append(features)
            return features

    found = concepts._directions(Watch(), torch.device("cpu"))
    assert found.shape == (4, module.DIRECTIONS, WIDTH) and len(seen) == 4
    without, having = seen[0]
    limit = (65 - 60) / 60  # of a range of 0 to 120
    assert float(having[..., AGE].min()) > limit >= float(without[..., AGE].max())
    assert float(having[..., AGE].max()) > 0.99 and float(without[..., AGE].min()) < -0.99
    without, having = seen[1]
    assert float(having[..., AGE].max()) <= (50 - 60) / 60 <= float(without[..., AGE].min())
    without, having = seen[3]
    assert bool((having[..., -1] == 1).all()) and bool((without[..., -2] == 1).all())
    for features in seen:
        assert bool((features[..., 1] == 0).all()) and float(features[..., 2].abs().max()) <= 3.0
        assert torch.equal(features[..., 3:6].sum(-1), torch.ones_like(features[..., 0]))
    mean = found.mean(1).abs()
    assert int(mean[0].argmax()) == AGE and float(mean[0][1:].max()) < 0.1


def test_the_only_category_of_a_column_is_held_against_an_empty_cell() -> None:
    columns = {**TABLE["data"]["schema"]["columns"], "seen": {"kind": "categorical", "categories": ["1"]}}
    schema = {**TABLE["data"]["schema"], "columns": columns}
    tables = {**TABLE, "data": {"schema": schema}}
    tables["evaluation"] = {"metrics": True, "concepts": {"seen": {"column": "seen", "equals": "1.0"}}}
    settings = config.parse(tables, source="")
    directions = declared(settings)._directions(nn.Identity(), torch.device("cpu"))
    assert bool((directions[0, :, -1] == 1).all())


def test_sums_travel_with_the_metrics_and_leave_the_model_as_it_was() -> None:
    settings = experiment(curves=True)
    task = load_task(settings)
    cells, concepts = summed_of(settings, task)
    assert metric_sensitivity(task, cells, concepts) == pytest.approx(5**0.5)
    model, features, state = task.model(), records(30), torch.random.get_rng_state()
    sums = record_metrics(
        model, task, Records(features, torch.zeros(30, dtype=torch.long)), (cells, concepts)
    )
    assert set(riders(sums)) == {*cells.names, *concepts.names}
    assert sum(sums[name] for name in concepts.names) == pytest.approx(30 * 4**0.5)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_the_server_learned_last_is_told_with_its_noise() -> None:
    settings = experiment({"old": OLD, "male": MALE})
    plan, concepts, task = PrivacyPlan.of(settings), declared(settings), load_task(settings)
    each = (plan.metrics_noise_multiplier or 0) * metric_sensitivity(task, concepts)
    root, rows = 2**0.5, 100_000.0  # predicted as the first class; none is as the second
    sums = [0.9, 0.1, 0.0, 0.0, 0.45, 0.55, 0.0, 0.0]
    counts = {name: value * rows / root for name, value in zip(concepts.names, sums, strict=True)}
    lines = [{"round": 4, "counts": counts, "survivors": ["a"] * 9}, {"round": 5, "survivors": ["a"]}]
    found = learned_concepts(lines, settings, plan)
    assert found is not None and found.round == 4 and found.meanings == ("age > 65", "sex = m")
    assert found.shares == ((pytest.approx(0.9), None), (pytest.approx(0.45), None))
    # A share is half the difference of two sums, times the root of the number of concepts, over the records.
    assert found.noise == (pytest.approx(3 * each * root * root / 2 / rows), None)
    drowned = [{**lines[0], "counts": {name: value / 3000 for name, value in counts.items()}}]
    nothing = learned_concepts(drowned, settings, plan)
    assert nothing is not None and nothing.noise == (None, None)  # it was released, which the statement says
    assert learned_concepts(lines[1:], settings, plan) is None
    assert learned_concepts(lines, experiment({}), plan) is None


def test_the_noise_that_is_told_is_that_of_the_share() -> None:
    concepts, rng, noise = declared(experiment({"old": OLD, "male": MALE})), np.random.default_rng(1), 20.0
    exact = np.array([[[400, 100], [50, 450]], [[250, 250], [250, 250]]]) / 2**0.5
    draws = []
    for _ in range(2000):
        values = exact.ravel() + rng.normal(0, noise, 8)
        found = scores_of(concepts, dict(zip(concepts.names, values, strict=True)), noise)
        assert found is not None
        draws.append([*found.shares[0], *found.shares[1]])
    np.testing.assert_allclose(np.mean(draws, 0), [0.8, 0.1, 0.5, 0.5], atol=0.01)
    assert np.std(draws, 0)[2:] == pytest.approx([noise * 2**0.5 / 2**0.5 / 500] * 2, rel=0.08)


CONCEPTS = """
[evaluation]
metrics = true
explain = "lime"
[evaluation.concepts]
large = { column = "worst radius", above = 16.0 }
even = { column = "mean texture", below = 20.0 }
[data.schema]
label = "diagnosis"
classes = ["benign", "malignant"]
scaling = "SCALING"
[data.schema.columns]
"worst radius" = { kind = "numeric", range = [7.93, 36.04] }
"mean texture" = { kind = "numeric", range = [9.71, 39.28] }
"""


@pytest.mark.parametrize("engine", ["protocol", "ideal"])  # one by one and masked; stacked
@pytest.mark.parametrize("scaling", ["declared", "federated"])
def test_the_secure_sum_is_the_plain_sum_in_each_executor(tmp_path: Path, engine: str, scaling: str) -> None:
    text = TEXT + CONCEPTS.replace("SCALING", scaling)
    sites = Federation(tmp_path, "training.rounds=1", f"secure_aggregation.engine={engine}", text=text)
    with CohortExecutor() as executor:
        at_once = executor if engine == "ideal" else None
        with sites.rounds(tmp_path / "run", executor=at_once) as rounds:
            if scaling == "federated":
                rounds.scaling = learn_scaling(
                    rounds.grid, sites.experiment, rounds.plan, rounds.nodes, rounds.run_id
                )
            rounds.run(sites.initial())
    task = scaled(load_task(sites.experiment), rounds.scaling)
    harness, plain = Harness(sites.experiment, sites.sites, task), Counter[str]()
    for part in summed_of(sites.experiment, task):
        plain.update(harness.summed(sites.initial(), part))
    assert [name for name in plain if name.startswith(module.PREFIX)]
    counts = read_rounds(tmp_path / "run" / "rounds.jsonl")[-1]["counts"]
    ranges = encoder_of(sites.experiment, rounds.plan, task, sites.initial()).metrics
    unit = ranges["concepts/0"].resolution(2**sites.experiment.secure_aggregation.precision_bits)
    assert counts == pytest.approx(dict(plain), abs=6 * unit)  # each site rounds once


@pytest.mark.parametrize(
    ("concept", "said"),
    [
        ({"column": "aged", "above": 1}, r"evaluation\.concepts\.it\.column: 'aged' is no column.*mean 'age'\?"),
        ({"column": "y", "equals": "yes"}, "is no column"),
        ({"column": "age"}, r"evaluation\.concepts\.it.*needs one of above, below and equals"),
        ({"column": "age", "above": 1, "below": 9}, "needs one of above, below and equals"),
        ({"column": "age", "above": 120}, r"evaluation\.concepts\.it\.above: 120 is not within"),
        ({"column": "age", "below": -1}, r"evaluation\.concepts\.it\.below: -1 is not within"),
        ({"column": "amount of money", "above": 1e9}, "is not within"),
        ({"column": "age", "equals": "65"}, r"evaluation\.concepts\.it\.equals: 'age' is a number"),
        ({"column": "sex", "above": 1}, r"evaluation\.concepts\.it: 'sex' has categories"),
        ({"column": "sex", "equals": "n"}, r"evaluation\.concepts\.it\.equals: 'n' is no category of 'sex'"),
        ({"column": "age", "above": 1, "over": 3}, r"evaluation\.concepts\.it\.over"),
    ],
)  # fmt: skip
def test_a_concept_that_is_none_is_one_line_that_names_the_key(concept: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        declared(experiment({"it": concept}))


def test_what_has_no_concepts_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.concepts goes with the metrics"):
        experiment(metrics=False)
    tables = experiment().model_dump(mode="json", by_alias=True, exclude_none=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        config.parse({**tables, "privacy": {"client": {"epsilon": 2.0, "delta": 1e-2}}}, source="")
    logistic = config.parse({**tables, "task": {"model": {"name": "logistic"}}}, source="")
    with pytest.raises(ConfigError, match="need a hidden layer"):
        declared(logistic)
    arrays = {**arrays_experiment("classification", "mlp", shape=[4], classes=["a", "b"])}
    arrays["evaluation"] = {"metrics": True, "concepts": {"old": OLD}}
    with pytest.raises(ConfigError, match='are for kind = "tabular": of arrays and texts no schema says'):
        declared(config.parse(arrays, source=""))
    many = {f"c{i}": OLD for i in range(1025)}
    with pytest.raises(ConfigError, match="4100 sums would travel, 4096 is the most"):
        declared(experiment(many))
