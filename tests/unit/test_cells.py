"""Counts of outcomes: one cell of each table per record; figures that scikit-learn finds in the same predictions."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from client.evaluation import metric_sums, record_metrics
from tacit import config
from tacit.encoding import encoder_of, metric_sensitivity
from tacit.errors import ConfigError
from tacit.privacy.noise import Stream
from tacit.privacy.plan import PrivacyPlan
from tacit.report.rows import learned_outcomes
from tacit.tasks import Records, load_task
from tacit.tasks.cells import Cells, cells_of
from tacit.tasks.measures import measured
from tacit.tasks.summed import riders
from tests.unit.trained_runs import TABLE

TWO = Cells(("no", "yes"), 20)
THREE = Cells(("a", "b", "c"), 10)
GROUPED = Cells(("no", "yes"), 4, ("f", "m", "others"), (1, 2))


def experiment(**evaluation: Any) -> config.Experiment:
    sites = [{"label": f"s{i}", "rows": 200} for i in range(3)]
    return config.parse(
        {
            **TABLE,
            "privacy": {"record": {"epsilon": 5.0, "delta": 1e-4, "metrics_share": 0.2}},
            "evaluation": {"metrics": True, **evaluation},
            "federation": {"sites": sites},
        },
        source="",
    )


def scored(cells: Cells, rows: int, seed: int) -> tuple[torch.Tensor, Records]:
    """Logits that know something of the truth, and records whose features are their groups' one-hot block."""
    draws = np.random.default_rng(seed)
    k = len(cells.classes)
    truth = draws.integers(k, size=rows)
    logits = draws.normal(0, 1.5, (rows, k)) + 1.5 * np.eye(k)[truth]
    groups = np.eye(len(cells.groups))[draws.integers(len(cells.groups), size=rows)]
    features = np.column_stack([draws.normal(size=rows), groups[:, : len(cells.group_features)]])
    return torch.from_numpy(logits), Records(torch.from_numpy(features).float(), torch.from_numpy(truth))


@given(st.integers(0, 2**31), st.sampled_from([TWO, THREE, GROUPED]), st.booleans())
def test_one_record_more_moves_all_counts_together_by_at_most_the_root_of_the_number_of_tables(
    seed: int, cells: Cells, broken: bool
) -> None:
    outputs, records = scored(cells, 12, seed)
    if broken:
        outputs[0] = torch.tensor([torch.nan, torch.inf, -torch.inf])[: outputs.shape[1]]
    more = np.array(list(cells.count(outputs, records).values()))
    rest = Records(records.features[1:], records.targets[1:])
    fewer = np.array(list(cells.count(outputs[1:], rest).values()))
    assert len(more) == cells.size == len(cells.names)
    assert np.linalg.norm(more - fewer) == pytest.approx(len(cells.shapes) ** 0.5)
    assert more.sum() == 12 * len(cells.shapes)


def tables(cells: Cells, outputs: torch.Tensor, records: Records) -> tuple[Any, ...]:
    found = cells.tables(cells.count(outputs, records))
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_two_classes_are_those_of_scikit_learn(seed: int) -> None:
    cells = Cells(("no", "yes"), 200)
    outputs, records = scored(cells, 3000, seed)
    truth, probability = records.targets.numpy(), outputs.softmax(-1)[:, 1].numpy()
    called = probability >= 0.5
    found = measured(cells, tables(cells, outputs, records), 1)
    assert np.array_equal(found.confusion, sk.confusion_matrix(truth, called))
    exact = {
        "accuracy": sk.accuracy_score(truth, called),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, called),
        "precision": sk.precision_score(truth, called),
        "recall": sk.recall_score(truth, called),
        "f1": sk.f1_score(truth, called),
    }
    assert {name: found.metrics[name] for name in exact} == pytest.approx(exact)
    shares = np.stack(
        [np.histogram(probability[truth == c], cells.edges)[0] / (truth == c).sum() for c in (0, 1)]
    )
    ties = 0.5 * float(np.prod(shares, axis=0).sum())  # the bound that the page states
    assert abs(found.metrics["auroc"] - sk.roc_auc_score(truth, probability)) <= ties + 1e-12
    assert found.metrics["average_precision"] == pytest.approx(
        sk.average_precision_score(truth, probability), abs=0.01
    )
    place = np.digitize(probability, cells.edges[1:-1])
    error = sum(abs((truth[place == b] - cells.middles[b]).sum()) for b in range(200)) / len(truth)
    assert found.metrics["ece"] == pytest.approx(error)


def test_the_curves_of_a_rare_class_are_not_all_in_one_bin() -> None:
    """Of records of which one in thirty is ill a model says two to eight per cent."""
    rng = np.random.default_rng(5)
    risk = rng.uniform(0.02, 0.08, 4000)
    truth = (rng.random(4000) < (risk - 0.02) * 1.5).astype(np.int64)
    cells = Cells(("well", "ill"), 60)
    outputs = torch.from_numpy(np.log(np.column_stack([1 - risk, risk])))
    found = measured(cells, tables(cells, outputs, Records(torch.zeros(4000, 1), torch.from_numpy(truth))), 1)
    exact = sk.roc_auc_score(truth, risk)
    assert exact > 0.65 and abs(found.metrics["auroc"] - exact) < 0.01
    assert 0.5 in cells.edges and cells.edges[0] == 0 and cells.edges[-1] == 1


def test_figures_of_three_classes_are_those_of_scikit_learn() -> None:
    outputs, records = scored(THREE, 2000, 5)
    truth, called = records.targets.numpy(), outputs.argmax(-1).numpy()
    found = measured(THREE, tables(THREE, outputs, records), 1)
    assert np.array_equal(found.confusion, sk.confusion_matrix(truth, called))
    exact = {
        "accuracy": sk.accuracy_score(truth, called),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, called),
        "precision": sk.precision_score(truth, called, average="macro"),
        "recall": sk.recall_score(truth, called, average="macro"),
        "f1": sk.f1_score(truth, called, average="macro"),
    }
    assert {name: found.metrics[name] for name in exact} == pytest.approx(exact)
    assert found.roc == ((), ()) and found.reliability[0]


def test_counts_of_sites_add_up_to_those_of_all_their_records() -> None:
    outputs, records = scored(GROUPED, 90, 1)
    parts = [slice(0, 50), slice(50, 90)]
    counts = [GROUPED.count(outputs[p], Records(records.features[p], records.targets[p])) for p in parts]
    summed = {name: counts[0][name] + counts[1][name] for name in GROUPED.names}
    assert summed == GROUPED.count(outputs, records)


def test_rates_by_group_are_those_of_each_group_and_small_ones_are_not_shown() -> None:
    outputs, records = scored(GROUPED, 600, 2)
    group = np.array([f * 0 + (m * 1 if f + m else 2) for f, m in records.features[:, 1:].int().tolist()])
    truth, called = records.targets.numpy(), outputs.softmax(-1)[:, 1].numpy() >= 0.5
    found = measured(GROUPED, tables(GROUPED, outputs, records), 10)
    selected, odds = [], []
    for number, shown in enumerate(found.groups):
        own = group == number
        assert shown.records == own.sum()
        assert shown.metrics["selected"] == pytest.approx(called[own].mean())
        assert shown.metrics["recall"] == pytest.approx(called[own & (truth == 1)].mean())
        assert shown.metrics["false_alarms"] == pytest.approx(called[own & (truth == 0)].mean())
        selected.append(shown.metrics["selected"])
        odds.append((shown.metrics["recall"], shown.metrics["false_alarms"]))
    assert found.gaps["demographic_parity"] == pytest.approx(max(selected) - min(selected))
    assert found.gaps["equalised_odds"] == pytest.approx(max(np.ptp(odds, axis=0)))
    least = max(shown.records or 0 for shown in found.groups)
    few = measured(GROUPED, tables(GROUPED, outputs, records), least)
    assert [g.records for g in few.groups if g.records is not None] == [least]
    assert few.gaps == {}
    noised = measured(GROUPED, tables(GROUPED, outputs, records), 10, noise=200.0)
    assert all(g.records is None and not g.metrics for g in noised.groups)


def test_where_all_counts_are_below_three_standard_deviations_of_their_noise_no_figure_is_given() -> None:
    outputs, records = scored(TWO, 900, 1)
    found = tables(TWO, outputs, records)
    least = 900 / (3 * TWO.size**0.5)
    assert measured(TWO, found, 1, noise=0.99 * least).metrics
    drowned = measured(TWO, found, 1, noise=1.01 * least)
    assert (
        drowned.metrics == {} and drowned.confusion == () and drowned.roc == drowned.reliability == ((), ())
    )


def test_noise_that_leaves_nothing_gives_no_figure_and_no_warning() -> None:
    nothing = [np.full(shape, -3.0) for shape in TWO.shapes]
    found = measured(TWO, nothing, 1, noise=5.0)
    assert found.metrics == {} and found.roc == found.reliability == ((), ())
    one_class = np.zeros(TWO.shapes[0])
    one_class[0, 1, 15] = 7
    assert measured(TWO, [one_class], 1).metrics["accuracy"] == 1.0
    assert "auroc" not in measured(TWO, [one_class], 1).metrics


def test_counts_travel_with_the_noise_of_the_metrics_and_in_their_encoding() -> None:
    settings = experiment(curves=True, groups="sex", bins=4)
    task, plan = load_task(settings), PrivacyPlan.of(settings)
    cells = cells_of(settings, task)
    assert cells is not None and cells.groups == ("f", "m", "others") and cells.size == 3 * 2 * 4
    encoder = encoder_of(settings, plan, task, {"w": np.zeros(3, dtype=np.float32)})
    assert encoder.layout.metrics == ("accuracy", "loss", "records", *cells.names)
    assert metric_sensitivity(task, cells) == pytest.approx(4**0.5)  # accuracy, loss, the record, its cell
    model = task.model()
    width = task.num_features  # type: ignore[attr-defined]
    records = Records(torch.zeros(40, width), torch.ones(40, dtype=torch.long))
    exact = record_metrics(model, task, records, (cells,))
    assert sum(riders(exact).values()) == 40 == exact["records"]
    assert sum(exact[f"cells/{16 + i}"] for i in range(8)) == 40  # nobody has a sex here: all are others
    empty = record_metrics(model, task, Records(records.features[:0], records.targets[:0]), (cells,))
    assert set(empty) == set(exact) and not any(empty.values())
    stream = Stream(bytes(range(32)))
    draws = [metric_sums(model, task, records, 3.0, stream, (cells,)) for _ in range(300)]
    apart = np.array([[draw[name] - exact[name] for name in exact] for draw in draws])
    assert apart.std() == pytest.approx(3.0 * 2.0, rel=0.03)  # 8100 draws: 0.8 % is one standard deviation
    assert apart.std(0).min() > 4.5


def test_what_the_server_learned_last_is_told_with_its_noise() -> None:
    settings = experiment(curves=True)
    task, plan = load_task(settings), PrivacyPlan.of(settings)
    cells = cells_of(settings, task)
    assert cells is not None
    counts = dict(
        zip(cells.names, itertools.chain([4000.0] * 10, [-2.0] * 10, [0.0] * 10, [3000.0] * 10), strict=True)
    )
    rows = [
        {"round": 1, "counts": counts, "survivors": ["a", "b", "c", "d"]},
        {"round": 2, "survivors": ["a"]},
    ]
    learned = learned_outcomes(rows, settings, plan)
    assert learned is not None and learned.round == 1
    assert learned.confusion == ((40000.0, 0.0), (0.0, 30000.0))
    each = (plan.metrics_noise_multiplier or 0) * metric_sensitivity(task, cells)
    assert learned.noise == pytest.approx(2 * each)
    assert learned_outcomes(rows[1:], settings, plan) is None
    assert learned_outcomes(rows, experiment(), plan) is None


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"metrics": False, "curves": True}, "evaluation.curves goes with the metrics"),
        ({"groups": "sex"}, "belongs to evaluation.curves"),
        ({"curves": True, "bins": 7}, "evaluation.bins"),
        ({"curves": True, "groups": "age"}, "'age' is no categorical column"),
        ({"curves": True, "groups": "nothing"}, "'nothing' is no categorical column"),
    ],
)
def test_what_cannot_be_counted_is_one_line(evaluation: dict[str, Any], words: str) -> None:
    def made() -> None:
        settings = experiment(**evaluation)
        cells_of(settings, load_task(settings))

    with pytest.raises(ConfigError, match=words):
        made()


def test_clients_privacy_tasks_of_ones_own_and_too_many_cells_are_refused() -> None:
    tables = experiment(curves=True).model_dump(mode="json", by_alias=True, exclude_none=True)
    client = {"epsilon": 2.0, "delta": 1e-2}
    with pytest.raises(ConfigError, match="exclude each other"):
        config.parse({**tables, "privacy": {"client": client}}, source="")
    own = config.parse({**tables, "task": {"kind": "tests.unit.image_task:Images"}}, source="")
    with pytest.raises(ConfigError, match="built-in tasks that predict classes"):
        cells_of(own, load_task(own))
    schema = {**TABLE["data"]["schema"], "classes": [f"c{i}" for i in range(70)]}
    many = config.parse({**tables, "data": {"schema": schema}}, source="")
    with pytest.raises(ConfigError, match="4096 is the most"):
        cells_of(many, load_task(many))


def test_a_single_hidden_group_is_not_what_is_missing_from_the_total() -> None:
    sizes = np.array([300.0, 25.0, 3.0, 0.0])
    tables = np.zeros((4, 2, 4))
    tables[:, 1, 3] = sizes
    cells = Cells(("no", "yes"), 4, ("a", "b", "c", "others"), (0, 1, 2))
    shown = {group.name: group.records for group in measured(cells, (tables,), 20).groups}
    assert shown == {"a": 300, "b": None, "c": None, "others": None}
    tables[3, 1, 3] = 17  # two that are small, and 20 together, hide each other
    shown = {group.name: group.records for group in measured(cells, (tables,), 20).groups}
    assert shown == {"a": 300, "b": 25, "c": None, "others": None}


def test_noise_in_an_empty_group_hides_no_other_one() -> None:
    """Noised counts need no second group hidden, and "others" is empty as a rule."""
    tables = np.zeros((3, 2, 4))
    tables[:2] = 5000
    noise = np.random.default_rng(3).normal(0, 3.0, tables.shape)
    found = measured(Cells(("no", "yes"), 4, ("f", "m", "others"), (0, 1)), (tables + noise,), 20, 3.0)
    assert [group.records is not None for group in found.groups] == [True, True, False]
    assert set(found.gaps) == {"demographic_parity", "equalised_odds", "accuracy"}
