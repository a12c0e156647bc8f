"""An exported model, asked as another program would ask it: by ONNX Runtime or `torch.export`, with raw records."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from simulations.run import claimed
from tacit.cli import app, main
from tacit.data.schema import TextColumn
from tacit.data.tokens import tokenised
from tacit.errors import RunFailed
from tacit.inference import export, int8
from tacit.inference.predictor import Predictor
from tacit.inference.trained import Trained
from tests.unit.trained_runs import TABLE, arrays_experiment, run_folder, site_file, text_experiment

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
RECURRENT = arrays_experiment(
    "classification", "gru", shape=[2, 5], classes=["a", "b", "c"], missing="indicator"
)
IMAGES = arrays_experiment(
    "regression", "cnn", shape=[1, 8, 8], center=[0.5], target_scale=4.0, target_center=1.0
)


def tacit(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


WIDE = {**TABLE, "task": {"model": {"hidden": [256, 64]}}}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Predictor]:
    """A run, with its exported file beside it."""
    folder = run_folder(tmp_path_factory.mktemp("run"), WIDE)
    done = tacit("export", str(folder))
    assert done.exit_code == 0 and "differs from the run's by at most" in done.output
    return folder, Predictor(Trained.open(folder))


@pytest.fixture
def traced(table: tuple[Path, Predictor], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same run, whose graph is not traced once more, which takes seconds."""
    monkeypatch.setattr(export, "_named", lambda *_: onnx.load(str(table[0] / "model.onnx")))
    monkeypatch.setattr(export, "_traced", lambda predictor: None)
    return table[0]


def test_an_onnx_file_takes_what_stands_in_the_table(table: tuple[Path, Predictor], tmp_path: Path) -> None:
    folder, predictor = table
    raw, _ = predictor.reader.read(site_file(tmp_path))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert {i.name: i.type for i in session.get_inputs()} == {
        "age": "tensor(double)", "amount of money": "tensor(double)", "class": "tensor(string)",
        "sex": "tensor(string)",
    }  # fmt: skip
    probabilities, names = session.run(["probabilities", "class_"], dict(raw))
    wanted = predictor.predict(raw)
    assert np.abs(probabilities - wanted["probabilities"]).max() < 1e-5
    assert names.tolist() == wanted["class_"].tolist()
    one = {name: values[:1] for name, values in raw.items()}
    assert session.run(["class_"], one)[0].tolist() == names.tolist()[:1]


def test_K5_onnx_runtime_reports_nothing_to_its_makers(table: tuple[Path, Predictor], tmp_path: Path) -> None:
    """From 1.29 on it would, and keeps what it has to say, with a number of the device, in the user's cache."""
    ask = f"run_onnx(Path({str(table[0] / 'model.onnx')!r}), predictor, made_up(predictor.inputs, 3))"
    code = f"""
from pathlib import Path
from tacit.inference.export import run_onnx
from tacit.inference.inputs import made_up
from tacit.inference.predictor import Predictor
from tacit.inference.trained import Trained
predictor = Predictor(Trained.open(Path({str(table[0])!r})))
print({ask}.shape)
"""
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "ORT_DISABLE_TELEMETRY": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "(3, 2)\n"
    assert not [each for each in tmp_path.rglob("*") if "onnxruntime" in each.name.lower()]


def test_a_category_that_is_a_number_is_known_in_each_of_its_forms(table: tuple[Path, Predictor]) -> None:
    folder, predictor = table
    raw = {
        "age": np.full(4, 30.0),
        "amount of money": np.zeros(4),
        "class": np.array(["1", "1.0", "three", "four"], dtype=object),
        "sex": np.array(["f"] * 4, dtype=object),
    }
    got = export.run_onnx(folder / "model.onnx", predictor, raw)
    assert np.array_equal(got[0], got[1])
    assert not np.array_equal(got[0], got[2]) and not np.array_equal(got[2], got[3])
    assert np.abs(got - predictor.numbers(raw)).max() < 1e-5


def test_the_file_says_what_it_takes(table: tuple[Path, Predictor]) -> None:
    model = onnx.load(str(table[0] / "model.onnx"))
    told = json.loads({p.key: p.value for p in model.metadata_props}["tacit"])
    assert [i["name"] for i in told["inputs"]] == ["age", "amount of money", "class", "sex"]
    assert told["classes"] == ["no", "yes"]
    # ... and nothing of the machine that wrote it.
    assert b".py" not in model.SerializeToString()


@pytest.mark.slow
@pytest.mark.parametrize("tables", [RECURRENT, IMAGES])
def test_arrays_go_through_both_formats(tmp_path: Path, tables: dict[str, Any]) -> None:
    predictor = Predictor(Trained.open(run_folder(tmp_path, tables)))
    assert export.export_onnx(predictor, tmp_path / "model.onnx") < 1e-4
    assert export.export_torch(predictor, tmp_path / "model.pt2") < 1e-4


@pytest.mark.slow
def test_a_torch_archive_needs_no_tacit_and_says_what_its_positions_mean(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    done = tacit("export", str(folder), "--format", "torch")
    assert done.exit_code == 0 and "outputs: probabilities FP32[2]" in done.output
    extra = {"tacit.json": ""}
    program = torch.export.load(folder / "model.pt2", extra_files=extra).module()
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        assert not any(b".py" in archive.read(name) for name in archive.namelist())
    inputs = json.loads(extra["tacit.json"])["inputs"]
    assert inputs[2]["names"] == ["1", "2", "three"]
    answer = program(
        torch.tensor([61.0, torch.nan]).double(),
        torch.tensor([-1200.5, 0.0]).double(),
        torch.tensor([0, 1]),
        torch.tensor([0, 1]),
    )
    predictor = Predictor(Trained.open(folder))
    raw, _ = predictor.reader.read(site_file(tmp_path))
    assert np.allclose(answer.numpy(), predictor.numbers(raw)[:2], atol=1e-6)


@pytest.mark.parametrize("model", ["embedding", "transformer"])
def test_a_text_model_takes_the_tokens_that_its_metadata_describes(tmp_path: Path, model: str) -> None:
    folder = run_folder(tmp_path, text_experiment(model))
    done = tacit("export", str(folder))
    assert done.exit_code == 0 and "inputs: note INT64[6]" in done.output
    written = onnx.load(str(folder / "model.onnx"))
    (told,) = json.loads({p.key: p.value for p in written.metadata_props}["tacit"])["inputs"]
    assert (told["datatype"], told["shape"]) == ("INT64", [6])
    texts = ["Fever, cough", "", "one two three four five six seven"]
    tokens = tokenised(texts, TextColumn(column="note", **told["tokens"]))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    got, names = session.run(["probabilities", "class"], {"note": tokens})
    wanted = Predictor(Trained.open(folder)).predict({"note": np.array(texts, dtype=object)})
    assert np.abs(got - wanted["probabilities"]).max() < 1e-5
    assert np.abs(got[0] - got[2]).max() > 1e-4  # the text counts
    assert names.tolist() == wanted["class"].tolist()


def test_what_stayed_as_it_was_goes_into_the_file_with_its_adapters(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    base.write_bytes((run_folder(tmp_path / "base") / "model.safetensors").read_bytes())
    start = {"file": str(base), "sha256": hashlib.sha256(base.read_bytes()).hexdigest()}
    start |= {"adapt": ["0"], "freeze": ["2.*"]}
    tables = {**TABLE, "task": {**TABLE["task"], "start": start}}
    folder = run_folder(tmp_path / "run", tables)
    arrays = load_file(folder / "model.safetensors")
    assert set(arrays) == {"0.down.weight", "0.up.weight"}
    trained = {name: np.full_like(array, 0.3) for name, array in arrays.items()}  # `up` begins at 0
    save_file(trained, folder / "model.safetensors")
    predictor = Predictor(Trained.open(folder))
    assert tacit("export", str(folder)).exit_code == 0
    base.unlink()
    raw, _ = predictor.reader.read(site_file(tmp_path))
    got = export.run_onnx(folder / "model.onnx", predictor, raw)
    assert np.abs(got - predictor.numbers(raw)).max() < 1e-5
    assert np.abs(got - Predictor(Trained.open(tmp_path / "base")).numbers(raw)).max() > 1e-3


def test_an_export_that_does_not_predict_the_same_is_not_written(
    traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_named", lambda *_: _shifted(onnx.load(str(traced / "model.onnx"))))
    with pytest.raises(RunFailed, match="differs from the run's"):
        export.export_onnx(Predictor(Trained.open(traced)), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def _shifted(model: Any) -> Any:
    """With another bias in its last layer."""
    for array in model.graph.initializer:
        values = onnx.numpy_helper.to_array(array)
        if values.dtype == np.float32 and values.shape == (2,):
            array.CopyFrom(onnx.numpy_helper.from_array(values + np.float32([0.5, 0]), array.name))
    return model


def rows(folder: Path, number: int = 200) -> Path:
    """Rows whose labels are the model's own, so that its accuracy is 1 to begin with."""
    predictor = Predictor(Trained.open(folder))
    draws = np.random.default_rng(3)
    raw = {
        "age": draws.uniform(0, 120, number).round(1),
        "amount of money": draws.uniform(-1e4, 1e4, number).round(2),
        "class": draws.choice(["1", "2", "three"], number).astype(object),
        "sex": draws.choice(["f", "m"], number).astype(object),
    }
    said = predictor.predict(raw)["class_"]
    lines = [",".join(map(str, cells)) for cells in zip(*raw.values(), said, strict=True)]
    path = folder / "holdout.csv"
    path.write_text("age,amount of money,class,sex,y\n" + "\n".join(lines) + "\n")
    return path


def test_int8_is_measured_on_the_users_data_and_says_what_it_costs(traced: Path, tmp_path: Path) -> None:
    written, data = tmp_path / "small.onnx", rows(traced)
    arguments = ["--int8", "--data", str(data), "--tolerance", "0.2", "--out", str(written)]
    done = tacit("export", str(traced), *arguments)
    assert done.exit_code == 0, done.output
    assert "on 200 records accuracy" in done.output and "instead of 1.0000" in done.output
    predictor = Predictor(Trained.open(traced))
    raw, _ = predictor.reader.read(data)
    apart = np.abs(export.run_onnx(written, predictor, raw) - predictor.numbers(raw)).max()
    assert 0 < apart < 0.1  # it is another model, and a similar one
    assert any(i.data_type == onnx.TensorProto.INT8 for i in onnx.load(str(written)).graph.initializer)
    assert written.stat().st_size < 0.6 * (traced / "model.onnx").stat().st_size


def test_int8_that_loses_more_than_was_allowed_is_not_written(
    traced: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        int8, "_quantise", lambda floats, path: onnx.save(_shifted_far(onnx.load(str(floats))), str(path))
    )
    with pytest.raises(SystemExit) as ended:
        main(["export", str(traced), "--int8", "--data", str(rows(traced))])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "8 bits lose" in line and "nothing was written" in line
    assert not (traced / "model.int8.onnx").exists()


def _shifted_far(model: Any) -> Any:
    for _ in range(40):
        model = _shifted(model)
    return model


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "tflite"], "--format: must be onnx or torch"),
        (["--int8"], "--int8: needs --data FILE"),
        (["--int8", "--format", "torch", "--data", "x.csv"], "--int8: is for --format onnx"),
        (["--int8", "--data", "absent.csv"], "absent.csv: cannot be read"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run_folder(tmp_path)), *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_an_export_goes_with_the_run_that_it_was_made_of(tmp_path: Path) -> None:
    """Beside the statement of another run it would be taken for that one's."""
    with claimed(tmp_path / "run", resume=False):
        (tmp_path / "run" / "model.onnx").write_bytes(b"of this run")
    with claimed(tmp_path / "run", resume=True):
        assert (tmp_path / "run" / "model.onnx").exists()
    with claimed(tmp_path / "run", resume=False):
        assert not (tmp_path / "run" / "model.onnx").exists()
