"""Models of text, and models that began from a file, exported and asked with what a reader has."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tacit import config
from tacit.data.schema import TextColumn
from tacit.data.tokens import tokenised
from tacit.errors import ConfigError
from tacit.inference.export import export_onnx, export_torch
from tacit.inference.predictor import Predictor
from tacit.inference.trained import Trained
from tacit.tasks import load_task
from tacit.tasks.weights import initial_arrays
from tests.unit.trained_runs import TABLE, run_folder, site_file

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
TEXTS = ["pain calls", "", "calm well rests calm well rests calm", "Pain, CALLS!"]


def notes(model: dict[str, Any], **column: Any) -> dict[str, Any]:
    text = {"column": "the note", "length": 6, **column}
    return {
        "name": "notes",
        "task": {"kind": "text_classification", "model": model},
        "data": {"schema": {"label": "y", "classes": ["low", "high"], "text": text}},
    }


@pytest.mark.parametrize(
    ("model", "column"),
    [
        ({"name": "embedding"}, {"vocabulary": 40}),
        ({"name": "transformer", "hidden": [8]}, {"vocabulary": 40}),
        ({"name": "embedding"}, {"tokens": "bytes"}),
    ],
    ids=["embedding", "transformer", "bytes"],
)
def test_a_model_of_text_takes_texts_and_its_file_takes_their_tokens(
    model: dict[str, Any], column: dict[str, Any], tmp_path: Path
) -> None:
    predictor = Predictor(Trained.open(run_folder(tmp_path / "run", notes(model, **column))))
    wanted = predictor.predict({"the note": np.array(TEXTS, dtype=object)})
    assert len(np.unique(wanted["probabilities"][:3, 0])) == 3
    if column.get("tokens") != "bytes":  # words are told apart by their letters alone
        assert np.array_equal(wanted["probabilities"][0], wanted["probabilities"][3])
    path = tmp_path / "model.onnx"
    assert export_onnx(predictor, path) < 1e-5 and export_torch(predictor, tmp_path / "model.pt2") < 1e-5
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("the note", "tensor(int64)", ["rows", 6])
    ]
    # By the description alone.
    told = TextColumn.model_validate(predictor.named()["tokens"])
    probabilities, names = session.run(["probabilities", "class"], {"the note": tokenised(TEXTS, told)})
    assert np.abs(probabilities - wanted["probabilities"]).max() < 1e-5
    assert names.tolist() == wanted["class"].tolist()


def test_records_of_a_file_of_text_are_its_held_out_ones(tmp_path: Path) -> None:
    tables = notes({"name": "embedding"}, vocabulary=40)
    tables["data"]["schema"]["split"] = "part"
    predictor = Predictor(Trained.open(run_folder(tmp_path / "run", tables)))
    (tmp_path / "notes.csv").write_text("the note,y,part\na,low,train\nb c,high,test\n,low,test\n")
    raw, targets = predictor.reader.read(tmp_path / "notes.csv")
    assert raw["the note"].tolist() == ["b c", ""] and targets.tolist() == [1, 0]


def started(folder: Path) -> tuple[Path, Path]:
    """A run that has trained the head and adapters of a model that was there, and that model's file."""
    first = config.parse(TABLE, source="")
    base = folder / "base.safetensors"
    save_file(initial_arrays(load_task(first), private=False, seed=5), base)
    start = {
        "file": str(base),
        "sha256": hashlib.sha256(base.read_bytes()).hexdigest(),
        "head": ["2.*"],
        "adapt": ["0"],
        "rank": 2,
    }
    task = {**TABLE["task"], "start": start}
    return run_folder(folder / "run", {**TABLE, "task": task}, seed=9), base


def test_a_model_that_began_from_a_file_is_exported_as_the_whole_that_it_is(tmp_path: Path) -> None:
    run, base = started(tmp_path)
    predictor = Predictor(Trained.open(run))
    raw, _ = predictor.reader.read(site_file(tmp_path))
    assert export_onnx(predictor, tmp_path / "model.onnx") < 1e-5
    base.unlink()  # the exported file needs it no more
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], dict(raw))
    assert np.abs(probabilities - predictor.predict(raw)["probabilities"]).max() < 1e-5
    with pytest.raises(ConfigError, match=r"base\.safetensors: task\.start\.file: No such file"):
        Trained.open(run)
