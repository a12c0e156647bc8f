"""Lists of items that are ranked: reading them, their loss, NDCG and average precision, and what leaves a run."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from sklearn.metrics import average_precision_score, ndcg_score

from client.check import _num_rows
from client.private_gradients import unsupported
from simulations.array_sources import load_arrays
from tacit import config, learning
from tacit.data.array_schema import ArraySchema
from tacit.data.arrays import raw_arrays, read_arrays
from tacit.errors import ConfigError, DataError
from tacit.report.wording import protected
from tacit.tasks import Summarises, Task, load_task
from tacit.tasks.arrays import ArrayRanking
from tacit.tasks.models import build_to_rank
from tacit.tasks.ranking import Ranking

NAN = np.nan
TABLE = """visit,price,distance,relevance,split,ward
v1,10,1,0,train,north
v2,20,2,3,test,south
v1,30,,2,train,north
v1,50,5,,train,north
v2,60,6,1,test,south
"""
LISTS = {"id": "visit", "features": ["price", "distance"], "relevance": "relevance"}
SCHEMA = {"shape": [2, 3], "grades": 3, "center": [30, 3], "scale": [10, 1], "clip": 9.0}


def experiment(path: Path | str = "x.csv", /, task: Any = (), **changed: Any) -> config.Experiment:
    arrays = {**SCHEMA, "lists": LISTS, **changed}
    data = {"source": "csv", "path": str(path), "arrays": {k: v for k, v in arrays.items() if v is not None}}
    task = {"kind": "array_ranking", **dict(task)}
    return config.parse({"name": "ranks", "task": task, "data": data}, source="")


def written(folder: Path, text: str = TABLE) -> Path:
    (folder / "data.csv").write_text(text, encoding="utf-8")
    return folder / "data.csv"


def schema_of(**changed: Any) -> ArraySchema:
    schema = experiment(**changed).data.arrays
    assert schema is not None
    return schema


def test_rows_of_a_table_become_lists_with_items_in_their_order(tmp_path: Path) -> None:
    made = experiment(written(tmp_path), lists={**LISTS, "split": "split", "site": "ward"})
    schema = made.data.arrays
    assert schema is not None
    found = raw_arrays(tmp_path / "data.csv", schema)
    x = [[[10, 30, 50], [1, NAN, 5]], [[20, 60, NAN], [2, 6, NAN]]]
    np.testing.assert_array_equal(found["x"], np.array(x, dtype=np.float32))
    np.testing.assert_array_equal(found["y"], [[0, 2, NAN], [3, 1, NAN]])
    assert (found["split"].tolist(), found["site"].tolist()) == (["train", "test"], ["north", "south"])
    task = load_task(made)
    assert isinstance(task, ArrayRanking) and isinstance(task, Task) and isinstance(task, Summarises)
    records = task.read(tmp_path / "data.csv", "train")
    assert records.targets.tolist() == [[0, 2, -1]]
    assert records.features.tolist() == [[[-2, -2], [0, 0], [2, 2]]]  # items first: each is scored by itself
    assert task.model()(records.features).shape == (1, 3, 1)
    assert _num_rows(tmp_path / "data.csv", made) == 2
    assert "one whole list" in protected("record", made.model_dump())
    divided = load_arrays(made.data, 7)
    assert divided is not None and divided.table()[0]["label"].tolist() == ["some", "some"]


def test_a_record_follows_from_the_rows_of_its_own_list_and_the_schema_alone(tmp_path: Path) -> None:
    less = raw_arrays(written(tmp_path), schema_of())
    more = raw_arrays(written(tmp_path, TABLE + "v3,99,99,3,train,north\n"), schema_of())
    for name, values in less.items():
        np.testing.assert_array_equal(more[name][:2], values)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("price", "cost", "data.csv:1: the header lacks 'price'"),
        ("v1,30", ",30", "data.csv:4: column 'visit': is empty"),
        ("30,,2", "x,,2", "data.csv:4: column 'price': is not a finite decimal number"),
        ("30,,2", "30,,4", "data.csv:4: column 'relevance': must be a whole number from 0 to 3"),
        ("30,,2", "30,,1.5", "data.csv:4: column 'relevance': must be a whole number from 0 to 3"),
        ("30,,2", "30,,-1", "data.csv:4: column 'relevance': must be a whole number from 0 to 3"),
        ("v2,60", "v1,60", "data.csv:6: column 'visit': has more than the 3 items"),
        (",,2,train", ",,2,test", "data.csv:4: column 'split': is not what an earlier row"),
        ("test", "tset", "data.csv:3: column 'split': is neither"),
    ],
)
def test_an_error_names_the_line_and_the_column(old: str, new: str, words: str, tmp_path: Path) -> None:
    schema = schema_of(lists={**LISTS, "split": "split"})
    with pytest.raises(DataError, match=words) as caught:
        read_arrays(written(tmp_path, TABLE.replace(old, new)), schema, "train")
    assert "\n" not in str(caught.value)


def test_an_archive_has_relevances_and_minus_one_or_nothing_where_there_is_no_item(tmp_path: Path) -> None:
    path, x = tmp_path / "data.npz", np.zeros((2, 2, 3), dtype=np.float32)
    np.savez(path, x=x, y=np.array([[0, 3, -1], [1, NAN, 2]]))
    assert read_arrays(path, schema_of(), "train")[1].tolist() == [[0, 3, -1], [1, -1, 2]]
    for bad in (np.array([[0, 4, 0]] * 2), np.array([[0, 0.5, 0]] * 2), np.zeros((2, 2)), np.zeros(2)):
        np.savez(path, x=x, y=bad)
        with pytest.raises(
            DataError, match="key 'y': must be whole numbers from 0 to 3, the relevance of each"
        ):
            read_arrays(path, schema_of(), "train")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"grades": None}, "lists need grades"),
        ({"shape": [3, 3], "center": 0.0, "scale": 1.0}, "lists need grades and shape"),
        ({"shape": [2], "lists": None}, "grades need shape"),
        ({"classes": ["a", "b"]}, "neither classes nor outputs"),
        ({"lists": {**LISTS, "split": "visit"}}, "must be different columns"),
        ({"lists": None}, "with data.arrays needs data.arrays.series or lists"),
        ({"task": {"kind": "array_regression", "ndcg_at": 3}}, "ndcg_at is for array_ranking"),
    ],
)
def test_what_cannot_be_ranked_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        experiment(**changed)


def test_ranks_and_other_tasks_are_not_taken_for_each_other() -> None:
    with pytest.raises(ConfigError, match=r"data\.arrays\.grades: .* ranks no items"):
        load_task(experiment(task={"kind": "array_regression"}))
    plain = config.Data(source="npz", path="x.npz", arrays=ArraySchema(shape=(2, 3)))
    with pytest.raises(ConfigError, match=r"data\.arrays\.grades: .* needs the highest relevance"):
        load_task(experiment().model_copy(update={"data": plain}))
    for name in ("cnn1d", "transformer", "embedding", "vae"):
        with pytest.raises(ConfigError, match=f'"{name}" does not score items one by one; mlp, logistic do'):
            load_task(experiment(task={"model": {"name": name}})).model()
    assert not list(unsupported(build_to_rank(learning.Model(), 2)))


# Few numbers, so that many are equal; some of an item that is not there.
ITEMS = st.lists(
    st.tuples(st.sampled_from([-1.5, 0.0, 0.25, 3.0]), st.integers(-1, 4)), min_size=2, max_size=9
)


@given(ITEMS, st.integers(1, 10))
def test_metrics_are_those_of_scikit_learn(items: list[tuple[float, int]], at: int) -> None:
    scores, relevance = (np.array(column, dtype=float) for column in zip(*items, strict=True))
    task = Ranking()
    task.settings = learning.Task(kind="array_ranking", ndcg_at=at)
    found = task.metrics(torch.tensor(scores[None, :, None]).float(), torch.tensor(relevance[None]).float())
    there = relevance >= 0
    wanted = {"ndcg": 0.0, "map": 0.0}
    if there.sum() > 1 and (relevance > 0).any():
        gains = 2.0 ** relevance[there] - 1
        wanted["ndcg"] = ndcg_score(gains[None], scores[there][None], k=at)
        wanted["map"] = average_precision_score(relevance[there] > 0, scores[there])
    elif (relevance > 0).any():  # of one item scikit-learn does not speak
        wanted = {"ndcg": 1.0, "map": 1.0}
    assert {name: float(values) for name, values in found.items()} == pytest.approx(wanted)


def test_metrics_lie_in_0_1_for_each_record_whatever_the_outputs() -> None:
    outputs = torch.tensor([[NAN, 1.0, 2.0], [np.inf, -np.inf, 0.0], [NAN] * 3, [1e38, 1e38, -1e38]])
    for targets in (torch.tensor([[0.0, 30.0, -1.0]]), torch.zeros(1, 3), torch.full((1, 3), -1.0)):
        for values in Ranking().metrics(outputs.unsqueeze(2), targets.expand(4, 3)).values():
            assert values.shape == (4,) and ((values >= 0) & (values <= 1)).all()
    assert Ranking().summary(outputs[:0].unsqueeze(2), torch.zeros(0, 3)) == {}


def test_the_loss_is_the_cross_entropy_of_top_one_probabilities() -> None:
    outputs, targets = torch.tensor([[[1.0], [3.0], [0.5]]]), torch.tensor([[2.0, 0.0, 1.0]])
    wanted, said = (np.exp(v) / np.exp(v).sum() for v in (np.array([2, 0, 1.0]), np.array([1, 3, 0.5])))
    assert Ranking().loss(outputs, targets).tolist() == pytest.approx([-(wanted * np.log(said)).sum()])


def test_what_the_model_says_of_a_place_without_an_item_changes_neither_loss_nor_metrics() -> None:
    targets = torch.tensor([[2.0, -1.0, 0.0, 1.0], [-1.0] * 4])
    seen = []
    for said in (-9.0, 0.7, 1e30):
        outputs = torch.tensor([[0.5, said, 2.0, 0.1], [said] * 4]).unsqueeze(2).requires_grad_()
        loss = Ranking().loss(outputs, targets)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        assert outputs.grad is not None and not outputs.grad[targets < 0].any()
        seen.append([*loss.tolist(), *torch.stack([*Ranking().metrics(outputs, targets).values()]).flatten()])
    assert seen[0] == seen[1] == seen[2] and seen[0][1] == 0.0
    assert Ranking().loss(outputs[:1, [0, 2, 3]], targets[:1, [0, 2, 3]]).item() == pytest.approx(seen[0][0])
