"""Arrays as data: the archive of a site, its scaling, the tasks on it, and the models that read it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.private_gradients import unsupported
from simulations.array_sources import ArraySet, load_arrays, load_medmnist
from tacit import config, learning
from tacit.data.array_schema import ArraySchema
from tacit.data.arrays import read_arrays
from tacit.data.npz import scaled
from tacit.data.readers import num_rows
from tacit.errors import ConfigError, DataError
from tacit.tasks import Summarises, Task, load_task
from tacit.tasks.arrays import ArrayClassification, ArrayRegression
from tacit.tasks.models import AXES, build, build_for, build_to_give_back
from tacit.tasks.models.attention import Attention, places
from tacit.tasks.models.convolution import Residual
from tacit.tasks.multilabel import MultiLabel

SERIES = ArraySchema(shape=(2, 3), classes=("a", "b"), center=(1.0, 10.0), scale=(2.0, 5.0), clip=3.0)
NUMBERS = ArraySchema(shape=(4,), outputs=2, target_center=1.0, target_scale=2.0)
X = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
Y = np.array([0, 1, 1, 0])
SPLIT = np.array(["train", "test", "train", "train"])


def archive(tmp_path: Path, **arrays: Any) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, **{"x": X, "y": Y, "split": SPLIT, **arrays})
    return path


def experiment(kind: str, schema: ArraySchema, model: str = "mlp") -> config.Experiment:
    data = {"source": "npz", "path": "data.npz", "arrays": schema.model_dump()}
    return config.parse(
        {"name": "x", "task": {"kind": kind, "model": {"name": model}}, "data": data}, source=""
    )


def test_a_split_is_read_and_scaled_by_channel_and_cut(tmp_path: Path) -> None:
    x, y = read_arrays(archive(tmp_path), SERIES, "train")
    assert (x.shape, x.dtype, y.tolist(), y.dtype) == ((3, 2, 3), np.float32, [0, 1, 0], np.int64)
    assert x[0].tolist() == [[-0.5, 0.0, 0.5], pytest.approx([-1.4, -1.2, -1.0])]
    assert x.max() == 3.0
    assert len(read_arrays(archive(tmp_path), SERIES, "test")[1]) == 1


def test_a_file_without_split_is_all_for_training(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    assert len(read_arrays(tmp_path / "data.npz", SERIES, "train")[1]) == 4
    assert len(read_arrays(tmp_path / "data.npz", SERIES, "test")[1]) == 0


def test_an_empty_place_is_the_center_and_may_be_told_to_the_model() -> None:
    x = X[:1].copy()
    x[0, 1, 2] = np.nan
    assert scaled(x, SERIES)[0, 1, 2] == 0.0
    told = scaled(x, SERIES.model_copy(update={"missing": "indicator"}))
    assert told.shape == (1, 4, 3) == (1, *SERIES.model_copy(update={"missing": "indicator"}).input_shape)
    assert told[0, 2:].tolist() == [[0, 0, 0], [0, 0, 1]]


def test_each_record_is_scaled_by_itself() -> None:
    """No statistic of the other records gets into a record, or the noise would not cover it."""
    alone = [scaled(X[i : i + 1], SERIES)[0] for i in range(4)]
    assert np.array_equal(np.stack(alone), scaled(X, SERIES))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"x": X[:, :1]}, r"data\.npz: key 'x': is float32 of shape \(4, 1, 3\); .* \(rows, 2, 3\)"),
    ({"x": X.astype("U4")}, "key 'x': is <U4"),
    ({"x": X + np.inf}, "key 'x': has infinite numbers"),
    ({"x": np.array([None])}, "key 'x': holds Python objects, which are never loaded"),
    ({"y": Y + 1}, "key 'y': must be whole numbers from 0 to 1"),
    ({"y": Y[:3]}, "key 'y': must be whole numbers .* each of the 4 records"),
    ({"y": Y * 0.5}, "key 'y'"),
    ({"split": np.array(["train", "val", "test", "train"])}, 'key \'split\': must be "train" or "test"'),
    ({"split": SPLIT[:2]}, "key 'split'"),
]


@pytest.mark.parametrize(("arrays", "words"), BAD)
def test_a_bad_archive_is_one_line_with_file_and_key(
    arrays: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        read_arrays(archive(tmp_path, **arrays), SERIES, "train")


def test_a_file_that_is_no_archive_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    for content, words in (
        (b"x,y\n1,2\n", "no NumPy archive"),
        (b"", "no NumPy archive"),
        (b"PK\3\4" + bytes(40), "damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_arrays(path, SERIES, "train")
    np.save(tmp_path / "single.npy", X)
    with pytest.raises(DataError, match="no NumPy archive"):
        read_arrays(tmp_path / "single.npy", SERIES, "train")
    with pytest.raises(DataError, match="No such file"):
        read_arrays(tmp_path / "absent.npz", SERIES, "train")
    np.savez(path, y=Y)
    with pytest.raises(DataError, match="key 'x': is not in the file"):
        read_arrays(path, SERIES, "train")


def test_numbers_to_predict_are_scaled_and_the_summary_speaks_in_their_unit(tmp_path: Path) -> None:
    y = np.array([[1.0, 3.0], [3.0, 5.0], [1.0, 1.0], [2.0, 2.0]])
    path = archive(tmp_path, x=X.reshape(4, 6)[:, :4], y=y)
    task = load_task(experiment("array_regression", NUMBERS))
    assert isinstance(task, ArrayRegression) and isinstance(task, Task) and isinstance(task, Summarises)
    records = task.read(path, "train")
    assert records.targets.tolist() == [[0.0, 1.0], [0.0, 0.0], [0.5, 0.5]]
    outputs = records.targets + 0.5
    assert task.loss(outputs, records.targets).tolist() == [0.25] * 3
    summary = task.summary(outputs, records.targets)
    assert (summary["rmse"], summary["mae"]) == (pytest.approx(1.0), pytest.approx(1.0))  # 0.5 scales of 2
    assert task.summary(records.targets, records.targets)["r2"] == pytest.approx(1.0)
    assert "r2" not in task.summary(outputs[:1, :1], records.targets[:1, :1])
    assert task.summary(outputs[:0], records.targets[:0]) == {}


def test_losses_of_numbers_by_name_and_the_metric_stays_the_square() -> None:
    outputs, targets = torch.tensor([[0.5, 0.0], [3.0, 0.0]]), torch.zeros(2, 2)
    wanted = {"squared": [0.125, 4.5], "absolute": [0.25, 1.5], "huber": [0.0625, 1.25]}
    for name, values in wanted.items():
        made = experiment("array_regression", NUMBERS)
        task = load_task(made.with_tables(task={"kind": "array_regression", "loss": name}))
        assert task.loss(outputs, targets).tolist() == values
        assert task.metrics(outputs, targets)["error"].tolist() == [0.125 / 4, 1.0]


def test_a_record_may_have_several_classes_or_none(tmp_path: Path) -> None:
    schema = ArraySchema(shape=(2, 3), classes=("a", "b", "c"), several=True)
    y = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1]])
    task = load_task(experiment("array_multilabel", schema))
    assert isinstance(task, Task) and isinstance(task, Summarises)
    records = task.read(archive(tmp_path, y=y), "train")
    assert records.targets.tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 1]]
    assert task.model()(records.features).shape == (3, 3)
    outputs = torch.tensor([[3.0, -3.0, 3.0], [-3.0, -3.0, 3.0], [3.0, 3.0, 3.0]])
    assert task.metrics(outputs, records.targets)["accuracy"].tolist() == pytest.approx([1, 2 / 3, 1])
    right, wrong = np.log1p(np.exp(-3)), np.log1p(np.exp(3))
    assert task.loss(outputs, records.targets).tolist() == pytest.approx(
        [right, (2 * right + wrong) / 3, right]
    )
    summary = task.summary(outputs, records.targets)
    assert (summary["auroc"], summary["accuracy"]) == (pytest.approx(2.5 / 3), pytest.approx(8 / 9))
    assert (
        "auroc" not in task.summary(outputs[:1], records.targets[:1])
        and task.summary(outputs[:0], y[:0]) == {}
    )
    for bad in (y[:, :2], y + 1, y * 0.5, y[:, 0]):
        with pytest.raises(DataError, match="key 'y': must be 0 or 1 for each of the 3 classes"):
            task.read(archive(tmp_path, y=bad), "train")
    divided = load_arrays(config.Data(source="npz", path=str(archive(tmp_path, y=y)), arrays=schema), 7)
    assert divided is not None and divided.table()[0]["label"].tolist() == ["some", "some", "none", "some"]


def test_multilabel_metrics_lie_in_0_1_for_each_record_whatever_the_outputs() -> None:
    outputs = torch.tensor([[float("nan"), 1.0], [float("inf"), -1e30], [float("-inf"), 1e30]])
    for targets in (torch.zeros(3, 2), torch.ones(3, 2)):
        for values in MultiLabel().metrics(outputs, targets).values():
            assert values.shape == (3,) and ((values >= 0) & (values <= 1)).all()
        assert all(np.isfinite(value) for value in MultiLabel().summary(outputs, targets).values())


def test_several_classes_and_one_are_not_taken_for_each_other() -> None:
    several = SERIES.model_copy(update={"several": True})
    for kind, schema in (("array_multilabel", SERIES), ("array_classification", several)):
        with pytest.raises(ConfigError, match=r"data\.arrays\.several"):
            load_task(experiment(kind, schema))


def test_regression_metrics_lie_in_0_1_for_each_record_whatever_the_outputs() -> None:
    task = ArrayRegression(NUMBERS, learning.Model())
    outputs = torch.tensor([[0.0, 0.0], [1e30, 0.0], [float("nan"), 0.0], [float("-inf"), 1.0]])
    values = task.metrics(outputs, torch.zeros(4, 2))
    assert set(values) == set(task.metric_names) == {"error", "absolute_error"}
    for each in values.values():
        assert each.tolist() == [0.0, 1.0, 1.0, 1.0]
    near = task.metrics(torch.tensor([[1.0, -0.5]]), torch.zeros(1, 2))
    assert {name: float(each) for name, each in near.items()} == {
        "error": 0.625 / 4,
        "absolute_error": 0.75 / 2,
    }


def test_a_task_over_arrays_says_what_is_not_declared() -> None:
    for kind, schema in (("array_classification", NUMBERS), ("array_regression", SERIES)):
        with pytest.raises(ConfigError, match=r"data\.arrays\.classes"):
            load_task(experiment(kind, schema))
    bare = config.parse({"name": "x", "task": {"kind": "array_regression"}}, source="")
    with pytest.raises(ConfigError, match=r"data\.arrays: .* needs the shape"):
        load_task(bare)
    assert isinstance(load_task(experiment("array_classification", SERIES)), ArrayClassification)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"center": (1.0,)}, "center has 1 numbers"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"classes": ("only",)}, "two names"),
        ({"classes": (), "several": True}, "several needs classes"),
        ({"classes": ("1", "1.0")}, "twice"),
        ({"shape": (1, 2, 3, 4)}, "shape"),
        ({"shape": (2, 0)}, "shape"),
    ],
)
def test_a_schema_that_cannot_be_is_refused(changed: dict[str, Any], words: str) -> None:
    arrays = {**SERIES.model_dump(), **changed}
    with pytest.raises(ConfigError, match=words):
        config.parse({"name": "x", "data": {"source": "npz", "path": "p", "arrays": arrays}}, source="")


SHAPES = {
    "cnn": (3, 9, 7), "resnet": (3, 9, 7), "cnn1d": (2, 11), "rnn": (2, 5), "gru": (2, 5), "lstm": (2, 5),
    "transformer": (2, 5), "mlp": (2, 3), "logistic": (4,),
}  # fmt: skip
SIZES = {"hidden": (4,), "channels": (2, 4)}
SMALL = {
    name: learning.Model(name=name, **{k: v for k, v in SIZES.items() if k in learning.MODEL_KEYS[name]})  # type: ignore[arg-type]
    for name in SHAPES
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_gives_one_row_of_outputs_for_each_record(name: str) -> None:
    model = build_for(SMALL[name], SHAPES[name], outputs=3)
    records = torch.randn(5, *SHAPES[name])
    if name not in AXES:
        records = records.flatten(1)
    assert model(records).shape == (5, 3)
    assert list(unsupported(model)) == []


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "logistic"])
def test_dropout_leaves_numbers_out_in_training_and_none_after_it(name: str) -> None:
    model = build_for(
        SMALL[name].model_copy(update={"dropout": 0.5, "hidden": (8,)}), SHAPES[name], outputs=3
    )
    records = torch.randn(5, *SHAPES[name])
    if name not in AXES:
        records = records.flatten(1)
    assert not torch.equal(model(records), model(records))
    model.eval()
    assert torch.equal(model(records), model(records))
    assert "Dropout" not in repr(build_for(SMALL["mlp"], SHAPES["mlp"], 3))  # or it would not stack


def test_attention_is_torchs_own() -> None:
    ours, theirs = Attention(6, 3), nn.MultiheadAttention(6, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.projections.weight)
        theirs.in_proj_bias.copy_(ours.projections.bias)
        theirs.out_proj.load_state_dict(ours.output.state_dict())
        x = torch.randn(4, 5, 6)
        torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-5, atol=1e-6)


def test_a_transformer_tells_one_step_from_another() -> None:
    model, series = build_for(SMALL["transformer"], (2, 5), outputs=3), torch.randn(4, 2, 5)
    assert not torch.allclose(model(series), model(series.flip(2)))
    assert places(7, 5).shape == (7, 5) and len({tuple(row) for row in places(7, 5).tolist()}) == 7


def test_a_resnet_halves_the_sides_once_for_each_block_after_the_first() -> None:
    model = build_for(SMALL["resnet"].model_copy(update={"channels": (2, 4, 6)}), (3, 9, 7), outputs=3)
    assert isinstance(model, nn.Sequential)
    images = torch.randn(5, 3, 9, 7)
    shapes = []
    for layer in model:
        images = layer(images)
        if isinstance(layer, Residual):
            shapes.append(tuple(images.shape))
    assert shapes == [(5, 2, 9, 7), (5, 4, 5, 4), (5, 6, 3, 2)]


def test_a_model_says_how_many_axes_it_wants() -> None:
    with pytest.raises(ConfigError, match=r'"cnn" takes records of 3 axes, these have 2: \(2, 5\)'):
        build_for(SMALL["cnn"], (2, 5), 2)
    with pytest.raises(ConfigError, match='"gru" reads arrays'):
        build(SMALL["gru"], 5, 2)


def test_a_model_that_gives_records_back_and_one_that_predicts_are_not_taken_for_each_other() -> None:
    for make in (
        lambda: build(learning.Model(name="vae"), 5, 2),
        lambda: build_for(learning.Model(name="vae"), (5,), 2),
    ):
        with pytest.raises(
            ConfigError, match=r'"vae" gives records back .* tabular_anomaly or array_anomaly'
        ):
            make()
    with pytest.raises(ConfigError, match=r'"mlp" gives no record back; .* autoencoder, vae'):
        build_to_give_back(learning.Model(), 5)


@pytest.mark.parametrize(("name", "theirs"), [("rnn", nn.RNN), ("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_a_recurrent_cell_is_torchs_own(name: str, theirs: type[nn.RNNBase]) -> None:
    ours = build_for(SMALL[name], SHAPES[name], outputs=2)
    reference = theirs(2, 4, batch_first=True)
    order = {"rnn": (0,), "gru": (0, 1, 2), "lstm": (0, 1, 2, 3)}[
        name
    ]  # reset, update, new; input, forget, new, output
    with torch.no_grad():
        for layer, end in ((ours.input, "ih"), (ours.state, "hh")):
            for kind in ("weight", "bias"):
                blocks = getattr(layer, kind).chunk(len(order))
                getattr(reference, f"{kind}_{end}_l0").copy_(torch.cat([blocks[i] for i in order]))
        series = torch.randn(3, 2, 5)
        states, _ = reference(series.mT)
        expected = ours.head(torch.cat([states[:, -1], states.mean(1)], dim=1))
        assert torch.allclose(ours(series), expected, atol=1e-6)


def test_a_users_archive_is_checked_before_it_is_divided(tmp_path: Path) -> None:
    def load(**arrays: Any) -> ArraySet:
        path = archive(tmp_path, **arrays)
        found = load_arrays(config.Data(source="npz", path=str(path), arrays=SERIES), 7)
        assert found is not None
        return found

    whole = load(site=np.array([2, 2, 1, 1]))
    table, schema = whole.table()
    assert table["site"].tolist() == ["2", "2", "1", "1"] and table["label"].tolist() == ["a", "b", "b", "a"]
    assert (schema.site, schema.split, schema.classes) == ("site", "split", ("a", "b"))
    assert "data" not in repr(whole) and "4 records" in repr(whole)
    for arrays, words in [
        ({"x": X[:3]}, "key 'x': has shape"),
        ({"y": Y + 7}, "key 'y'"),
        ({"site": np.array([0.5] * 4)}, "key 'site'"),
        ({"split": np.array(["a"] * 4)}, "key 'split'"),
    ]:
        with pytest.raises(DataError, match=words):
            load(**arrays)
    with pytest.raises(ConfigError, match=r"data\.arrays"):
        load_arrays(config.Data(source="npz", path="data.npz"), 7)


def test_where_numbers_are_predicted_the_two_sides_of_the_centre_stand_for_classes() -> None:
    numbers = ArraySet(X.reshape(4, 6)[:, :4], np.array([[0.0, 9], [2.0, 0], [1.0, 9], [5.0, 0]]), NUMBERS)
    assert numbers.table()[0]["label"].tolist() == ["low", "high", "low", "high"]


def test_an_archive_says_how_many_records_it_holds(tmp_path: Path) -> None:
    assert num_rows(archive(tmp_path)) == 4
    for x, words in (
        ({"z": X}, "key 'x': is not in the file"),
        ({"x": np.float32(1)}, "key 'x': has no records"),
    ):
        np.savez(tmp_path / "data.npz", **x)
        with pytest.raises(DataError, match=words):
            num_rows(tmp_path / "data.npz")


def test_digits_are_images_between_minus_one_and_one(tmp_path: Path) -> None:
    digits = load_arrays(config.Data(source="digits"), 7)
    assert digits is not None and digits.x.shape == (1797, 1, 8, 8)
    assert sorted(set(digits.y.tolist())) == list(range(10)) == [int(c) for c in digits.schema.classes]
    made = scaled(digits.x, digits.schema)
    assert (made.min(), made.max()) == (-1, 1)


def test_medmnist_files_are_read_and_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "pneumoniamnist.npz"
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {}
    for part, rows in (("train", 6), ("val", 2), ("test", 4)):
        parts[f"{part}_images"] = rng.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        parts[f"{part}_labels"] = rng.integers(0, 2, (rows, 1), dtype=np.uint8)
    np.savez(path, **parts)
    images = load_medmnist(path, ("normal", "pneumonia"))
    assert images.x.shape == (12, 1, 28, 28) and 0 <= images.x.min() <= images.x.max() <= 1
    assert images.y.tolist() == [int(y) for k in ("train", "val", "test") for y in parts[f"{k}_labels"][:, 0]]
    divided = load_arrays(config.Data(source="medmnist", dir=str(tmp_path)), 7)
    assert divided is not None and divided.site is not None and divided.truth is None
    np.savez(path, **{**parts, "test_labels": parts["test_labels"] + 2})
    with pytest.raises(DataError, match="2 classes are declared"):
        load_medmnist(path, ("normal", "pneumonia"))
    np.savez(path, x=X)
    with pytest.raises(DataError, match="none of MedMNIST's"):
        load_medmnist(path, ("normal", "pneumonia"))
    with pytest.raises(DataError, match="is not there"):
        load_medmnist(tmp_path / "absent.npz", ("normal", "pneumonia"))
