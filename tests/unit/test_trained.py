"""A model rebuilt from its run: the same features as in training; what is missing or foreign is one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tacit.errors import ConfigError, DataError, ProtocolError, StorageError, TacitError
from tacit.inference.inputs import inputs_of, made_up
from tacit.inference.predictor import Predictor
from tacit.inference.trained import Trained
from tests.unit.trained_runs import COLUMNS, ROWS, TABLE, arrays_experiment, run_folder, site_file

FEDERATED = {
    **TABLE,
    "data": {
        "schema": {
            "label": "y",
            "classes": ["no", "yes"],
            "scaling": "federated",
            "columns": {
                **COLUMNS,
                "amount of money": {"kind": "numeric", "transform": "log", "range": [-1e6, 1e6]},
            },
        }
    },
}
SCALING = {"age": [50.0, 12.5], "amount of money": [1.5, 4.0]}


@pytest.mark.parametrize(("tables", "scaling"), [(TABLE, None), (FEDERATED, SCALING)])
def test_a_raw_record_becomes_the_same_features_here_as_in_training(
    tmp_path: Path, tables: dict[str, Any], scaling: dict[str, Any] | None
) -> None:
    trained = Trained.open(run_folder(tmp_path, tables, scaling))
    path = site_file(tmp_path)
    reader = inputs_of(trained)
    raw, targets = reader.read(path)
    features = reader.features()(*reader.tensors(raw))
    records = trained.task.read(path, "train")
    assert torch.equal(features, records.features)
    assert torch.equal(targets, records.targets)
    assert records.features.abs().sum(0).all()  # each feature of the file says something


@pytest.mark.parametrize("missing", ["zero", "indicator"])
@pytest.mark.parametrize(
    ("model", "shape"), [("mlp", [3]), ("cnn", [2, 8, 8]), ("cnn1d", [2, 16]), ("gru", [2, 5])]
)
def test_raw_arrays_become_the_same_features_too(
    tmp_path: Path, model: str, shape: list[int], missing: str
) -> None:
    center = [1.0] * shape[0]
    tables = arrays_experiment(
        "regression", model, shape=shape, outputs=2, center=center, scale=3.0, clip=2.0, missing=missing,
        target_center=10.0, target_scale=5.0,
    )  # fmt: skip
    trained = Trained.open(run_folder(tmp_path, tables))
    predictor = Predictor(trained)
    x = made_up(predictor.inputs, 20)["x"]
    path = tmp_path / "rows.npz"
    y = np.linspace(5, 15, 40).reshape(20, 2)
    np.savez(path, x=x, y=y)
    raw, targets = predictor.reader.read(path)
    records = trained.task.read(path, "train")
    assert torch.equal(predictor.reader.features()(*predictor.reader.tensors(raw)), records.features)
    assert torch.allclose(targets.double(), torch.from_numpy(y))  # in their own unit
    with torch.no_grad():
        scaled = trained.model(records.features)
    assert np.allclose(predictor.predict(raw)["prediction"], scaled.numpy() * 5 + 10, atol=1e-5)


def test_the_test_split_is_what_is_read_where_there_is_one(tmp_path: Path) -> None:
    schema = {**TABLE["data"]["schema"], "split": "part"}
    trained = Trained.open(run_folder(tmp_path, {**TABLE, "data": {"schema": schema}}))
    lines = ROWS.splitlines()
    parts = ["part", "train", "test", "train", "test"]
    text = "".join(f"{line},{part}\n" for line, part in zip(lines, parts, strict=True))
    raw, targets = inputs_of(trained).read(site_file(tmp_path, text))
    assert raw["sex"].tolist() == ["m", "m"]
    assert targets.tolist() == [0, 0]


def test_predictions_are_probabilities_and_names_of_classes(tmp_path: Path) -> None:
    predictor = Predictor(Trained.open(run_folder(tmp_path)))
    raw, _ = predictor.reader.read(site_file(tmp_path))
    found = predictor.predict(raw)
    assert np.allclose(found["probabilities"].sum(1), 1)
    best = found["probabilities"].argmax(1)
    assert found["class_"].tolist() == [["no", "yes"][i] for i in best]


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("sex", ["secret"], "'sex' is none of its 2 categories"),
        ("age", [np.inf], "'age' has an infinite number"),
    ],
)
def test_a_value_that_the_schema_does_not_allow_is_refused_without_being_told(
    tmp_path: Path, column: str, values: list[Any], words: str
) -> None:
    reader = inputs_of(Trained.open(run_folder(tmp_path)))
    raw = {name: cells[:1] for name, cells in made_up(reader.inputs, 1).items()}
    raw["sex"] = np.array(["f"], dtype=object)
    raw[column] = np.array(values, dtype=raw[column].dtype)
    with pytest.raises(ProtocolError, match=words) as caught:
        reader.tensors(raw)
    assert "secret" not in str(caught.value)


def test_a_model_of_complete_rows_takes_no_empty_cell(tmp_path: Path) -> None:
    schema = {**TABLE["data"]["schema"], "missing_rows": "drop"}
    reader = inputs_of(Trained.open(run_folder(tmp_path, {**TABLE, "data": {"schema": schema}})))
    raw = made_up(reader.inputs, 1)
    raw |= {"age": np.array([np.nan]), "sex": np.array(["f"], dtype=object)}
    with pytest.raises(ProtocolError, match="'age' has an empty cell"):
        reader.tensors(raw)


def test_what_is_no_finished_run_is_said(tmp_path: Path) -> None:
    def broken(error: type[TacitError], words: str) -> None:
        with pytest.raises(error, match=words) as caught:
            Trained.open(tmp_path)
        assert "\n" not in str(caught.value)

    broken(ConfigError, "holds no model.safetensors")
    run_folder(tmp_path, {**TABLE, "task": {"model": {"hidden": [5]}}})
    other = (tmp_path / "model.safetensors").read_bytes()
    run_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(other)
    broken(ConfigError, "belongs to another run")
    (tmp_path / "model.safetensors").write_bytes(other[:-3])
    broken(StorageError, "model.safetensors: damaged")
    (tmp_path / "experiment.toml").unlink()
    broken(StorageError, r"experiment.toml: cannot be read")
    run_folder(tmp_path, FEDERATED)
    broken(StorageError, r"scaling.json: cannot be read")
    run_folder(tmp_path, FEDERATED, {"age": [0, 1]})
    broken(StorageError, r"scaling.json: damaged, or of another run")


def test_a_task_of_ones_own_needs_a_file_that_shows_its_features(tmp_path: Path) -> None:
    tables = {"name": "own", "task": {"kind": "tests.unit.image_task:Images"}, "data": {"source": "task"}}
    trained = Trained.open(run_folder(tmp_path, tables))
    with pytest.raises(DataError, match="--data"):
        inputs_of(trained)


def test_a_model_of_which_each_site_keeps_a_part_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {**TABLE, "strategy": {"name": "fedper", "personal": ["2.*"]}})
    with pytest.raises(
        ConfigError, match="only the part of the model that travels: each site keeps the rest"
    ):
        Trained.open(folder)
