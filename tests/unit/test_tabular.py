"""The built-in tabular task: from a file to a loss, metrics and a summary."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from tacit import config, learning
from tacit.data.schema import Schema
from tacit.errors import ConfigError, DataError
from tacit.tasks import Summarises, Task, load_task
from tacit.tasks.models import build
from tacit.tasks.tabular import TabularClassification

COLUMNS = {
    "a": {"kind": "numeric", "range": [0, 10]},
    "flat": {"kind": "numeric", "range": [0, 10]},
    "c": {"kind": "categorical", "categories": ["u", "v"]},
}


COLUMN = 'columns.a = {kind = "numeric", range = [0, 10]}'


def task(model: learning.Model | None = None, **schema: object) -> TabularClassification:
    declared = Schema.model_validate({"label": "y", "columns": COLUMNS, **schema})
    return TabularClassification(declared, model or learning.Model())


def site(tmp_path: Path, labels: str) -> Path:
    path = tmp_path / "site.csv"
    path.write_text("a,flat,c,y\n" + "".join(f"{i},5,u,{label}\n" for i, label in enumerate(labels)))
    return path


def test_an_experiment_with_a_schema_makes_the_task() -> None:
    schema = {"label": "y", "columns": COLUMNS}
    tables = {"name": "x", "task": {"model": {"name": "logistic"}}, "data": {"schema": schema}}
    made = load_task(config.parse(tables, source=""))
    assert isinstance(made, TabularClassification)
    assert isinstance(made, Task)
    assert isinstance(made, Summarises)
    assert (made.num_features, made.num_classes) == (4, 2)
    del tables["data"]
    with pytest.raises(ConfigError, match=r"data\.schema"):
        load_task(config.parse(tables, source=""))


def test_an_idle_client_that_knows_the_task_has_not_imported_torch_or_an_optional_library() -> None:
    unwanted = {"torch", "pandas", "pyarrow", "sklearn"}
    code = f"import sys, tacit.tasks.tabular; print(*{unwanted} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


@pytest.mark.parametrize("activation", get_args(learning.Activation))
def test_models_have_the_sizes_of_schema_and_configuration(activation: str) -> None:
    mlp = build(learning.Model(hidden=(8, 4), activation=activation), inputs=5, classes=3)
    assert [tuple(p.shape) for p in mlp.parameters()] == [(8, 5), (8,), (4, 8), (4,), (3, 4), (3,)]
    assert mlp(torch.zeros(7, 5)).shape == (7, 3)
    assert mlp(torch.zeros(0, 5)).shape == (0, 3)
    linear = build(learning.Model(name="logistic"), inputs=5, classes=2)
    assert [tuple(p.shape) for p in linear.parameters()] == [(2, 5), (2,)]


def test_initial_weights_follow_the_global_seed() -> None:
    def weights(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in task().model().parameters()]).tolist()

    assert weights(1) == weights(1)
    assert weights(1) != weights(2)


@pytest.mark.parametrize("name", ["mlp", "logistic"])
def test_models_have_per_sample_gradients(name: str) -> None:
    model = build(learning.Model(name=name), inputs=4, classes=2)
    parameters = dict(model.named_parameters())

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(model, weights, (x.unsqueeze(0),))
        return task().loss(outputs, y.unsqueeze(0)).sum()

    x, y = torch.randn(6, 4), torch.randint(2, (6,))
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    task().loss(model(x), y).sum().backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(each[key].sum(0), parameter.grad)


def test_G6_model_and_input_size_mismatch_names_both() -> None:
    with pytest.raises(ConfigError, match="the model takes 4 features, the records have 3"):
        task().model()(torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="the model takes 4 features, the records have 0"):
        task().model()(torch.tensor(1.0))


@pytest.mark.parametrize("labels", ["0", "1", "0000000000", "1111111111", "0101010101"])
@pytest.mark.parametrize("name", ["mlp", "logistic"])
def test_G4_one_class_and_constant_features_train_without_nan(tmp_path: Path, labels: str, name: str) -> None:
    tabular = task(learning.Model(name=name))
    records = tabular.read(site(tmp_path, labels), "train")
    assert records.num_rows == len(labels)
    model = tabular.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    for _ in range(200):
        optimizer.zero_grad()
        tabular.loss(model(records.features), records.targets).mean().backward()
        optimizer.step()
    outputs = model(records.features)
    assert torch.isfinite(outputs).all()
    assert all(np.isfinite(value) for value in tabular.summary(outputs, records.targets).values())


def test_records_are_float32_and_int64_and_no_training_row_is_refused(tmp_path: Path) -> None:
    records = task().read(site(tmp_path, "01"), "train")
    assert records.features.tolist() == [[-1, 0, 1, 0], pytest.approx([-0.8, 0, 1, 0])]
    assert (records.features.dtype, records.targets.dtype) == (torch.float32, torch.int64)
    assert task().read(site(tmp_path, "01"), "test").num_rows == 0
    path = tmp_path / "empty.csv"
    path.write_text("a,flat,c,y\n,5,u,0\n1,?,u,1\n")
    with pytest.raises(DataError, match="no row is left for training"):
        task(missing_rows="drop").read(path, "train")


def test_metrics_lie_in_0_1_for_each_record_whatever_the_outputs() -> None:
    bad = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 0.0]
    outputs = torch.tensor([[a, b] for a in bad for b in bad])
    for target in (0, 1):
        metrics = task().metrics(outputs, torch.full((len(outputs),), target))
        assert set(metrics) == set(TabularClassification.metric_names)
        for values in metrics.values():
            assert values.shape == (len(outputs),)
            assert ((values >= 0) & (values <= 1)).all()


def test_metrics_are_accuracy_and_cut_cross_entropy() -> None:
    outputs = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    metrics = task().metrics(outputs, torch.tensor([0, 0, 0]))
    assert metrics["accuracy"].tolist() == [1, 1, 0]
    assert metrics["loss"].tolist() == pytest.approx([np.log(2) / 5, 0, 1])


def test_losses_by_name_weights_and_smoothing_and_the_metric_stays_cross_entropy() -> None:
    outputs, targets = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    p = torch.softmax(outputs[0], 0)
    plain = -p.log()
    wanted = {
        "loss = 'cross_entropy'": plain,
        "loss = 'focal'": plain * (1 - p).square(),
        "class_weights = [1.0, 3.0]": plain * torch.tensor([1.0, 3.0]),
        "label_smoothing = 0.5": 0.5 * plain + 0.5 * plain.mean(),
    }
    for setting, values in wanted.items():
        made = load_task(
            config.loads(f'name = "x"\n[task]\n{setting}\n[data.schema]\nlabel = "y"\n' + COLUMN)
        )
        torch.testing.assert_close(made.loss(outputs, targets), values)
        torch.testing.assert_close(made.metrics(outputs, targets)["loss"], plain / 5)


def test_weights_for_other_classes_are_refused() -> None:
    text = 'name = "x"\n[task]\nclass_weights = [1.0, 2.0, 3.0]\n[data.schema]\nlabel = "y"\n' + COLUMN
    with pytest.raises(ConfigError, match=r"task\.class_weights: has 3 numbers, and there are 2 classes"):
        load_task(config.loads(text))


def test_summary_of_two_and_of_three_classes() -> None:
    outputs = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.0]])
    got = task().summary(outputs, torch.tensor([0, 0, 1, 1]))
    assert got["accuracy"] == 0.75
    assert got["balanced_accuracy"] == 0.75
    assert got["auroc"] == 1.0
    three = task(classes=["0", "1", "2"])
    got = three.summary(torch.eye(3)[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 2]))
    assert (got["accuracy"], got["balanced_accuracy"], got["auroc"]) == (1.0, 1.0, 1.0)
    got = three.summary(torch.eye(3)[[0, 0, 2]], torch.tensor([0, 0, 1]))  # class 2 is absent
    assert got["balanced_accuracy"] == 0.5
    assert got["auroc"] == 0.75


def test_summary_has_no_nan_and_no_warning_on_poor_sets() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_class = task().summary(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
        diverged = task().summary(torch.full((4, 2), float("nan")), torch.tensor([0, 1, 0, 1]))
        assert task().summary(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)) == {}
    assert set(one_class) == {"accuracy", "loss", "balanced_accuracy"}
    assert one_class["balanced_accuracy"] == 0.5
    assert diverged["auroc"] == 0.5
    assert diverged["loss"] == 1.0


def test_federated_scaling_goes_from_statistics_to_records(tmp_path: Path) -> None:
    tabular = task(scaling="federated")
    path = site(tmp_path, "01" * 10)
    with pytest.raises(ConfigError, match="statistics round"):
        tabular.read(path, "train")
    assert tabular.statistics(path).shape == (6,)
    scaled = tabular.with_constants({"a": (2.0, 2.0), "flat": (5.0, 1.0)})
    assert scaled.read(path, "train").features[4].tolist() == [1, 0, 1, 0]
    with pytest.raises(ConfigError, match="another schema"):
        tabular.with_constants({"a": (2.0, 2.0)})
