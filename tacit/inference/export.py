"""A trained model as one file for other runtimes, with its preprocessing inside.

onnx     for ONNX Runtime and whatever else reads ONNX: one input per column with the user's own names and texts
torch    `torch.export`: the same for PyTorch without Tacit; a text is given as its position among the names, which are
         in the file's "tacit.json"

What was written is read again and asked for predictions of made-up records; it counts only where they are those of the
run's model. Of a text both take the tokens (`tacit.data.tokens`): hashing words is no operation of theirs.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from tacit.data.schema import NUMBER
from tacit.errors import ConfigError, MissingExtra, RunFailed
from tacit.inference.inputs import Raw, made_up
from tacit.inference.predictor import Predictor, largest_difference

if TYPE_CHECKING:
    import onnx

ROWS: Final = 64  # made-up records that both models are asked about
MOST_APART: Final = 1e-4  # of a probability, or of a number over the largest of them
DESCRIPTION: Final = "tacit.json"
_EXTRA: Final = "export"
_STEM: Final = "column_{}"  # while it is traced; a user's names may be no names of Python's


def export_onnx(predictor: Predictor, path: Path) -> float:
    """Writes an ONNX file.

    Returns:
        The largest difference from the run's model on made-up records.

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
        ConfigError: the model has an operation that ONNX has no word for.
        RunFailed: the file does not predict what the run's model predicts.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401 - asked for before the work
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtra("an ONNX file", _EXTRA) from None
    model = _named(_traced(predictor), predictor)
    onnx.checker.check_model(model, full_check=True)
    with whole(path) as unfinished:
        onnx.save_model(model, str(unfinished))
        return _agreed(predictor, lambda raw: run_onnx(unfinished, predictor, raw))


def export_torch(predictor: Predictor, path: Path) -> float:
    """Writes a `torch.export` archive (.pt2); returns and raises as `export_onnx`."""
    program = _program(predictor)
    with whole(path) as unfinished, quiet():
        torch.export.save(program, unfinished, extra_files={DESCRIPTION: json.dumps(predictor.named())})
        loaded = torch.export.load(unfinished).module()

        def ask(raw: Raw) -> NDArray[np.float32]:
            with torch.inference_mode():
                return loaded(*predictor.reader.tensors(raw)).numpy()  # type: ignore[no-any-return]

        return _agreed(predictor, ask)


@contextmanager
def quiet() -> Iterator[None]:
    """Compilers tell their own makers of what will be deprecated, and of packages that nobody needs here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def run_onnx(path: Path, predictor: Predictor, raw: Raw) -> NDArray[np.float32]:
    """The first output of an exported file, by ONNX Runtime on the CPU."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    feed = {each.name: raw[each.name] for each in predictor.inputs if each.tokens is None}
    if not feed:  # a text, of which there is no more than one
        feed = {predictor.inputs[0].name: predictor.reader.tensors(raw)[0].numpy()}
    return np.asarray(session.run([predictor.outputs[0].name], feed)[0], dtype=np.float32)


def _tracing(predictor: Predictor) -> tuple[tuple[torch.Tensor, ...], Any]:
    """Example tensors, and that their first axis is free."""
    example = predictor.reader.tensors(made_up(predictor.inputs, 3))
    return example, ({0: torch.export.Dim.DYNAMIC},) * len(example)


def _program(predictor: Predictor) -> torch.export.ExportedProgram:
    example, shapes = _tracing(predictor)
    try:
        with quiet():
            program = torch.export.export(predictor.module, example, dynamic_shapes=(shapes,), strict=True)
    except Exception as error:  # the edge of a compiler, which has no exception of its own
        raise _cannot(error) from None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # source files, with their places on this machine
    return program


def _traced(predictor: Predictor) -> onnx.ModelProto:
    """The graph, with inputs of positions and names of its own."""
    names = [_STEM.format(i) for i in range(len(predictor.inputs))]
    try:
        with quiet():
            program = torch.onnx.export(
                _program(predictor), input_names=names, output_names=["numbers"], dynamo=True, verbose=False
            )
    except Exception as error:  # as above
        raise _cannot(error) from None
    assert program is not None
    return program.model_proto


def _cannot(error: Exception) -> ConfigError:
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    return ConfigError(f"this model cannot be exported: {first}", key="task.model")


def _named(traced: onnx.ModelProto, predictor: Predictor) -> onnx.ModelProto:
    """The same graph with the user's names, texts for positions, and the name of the class beside its probabilities."""
    import onnx
    from onnx import TensorProto, compose, helper

    prefix = "tacit/"
    model = compose.add_prefix(traced, prefix)
    graph = model.graph
    inputs, before, after = [], [], []
    for i, each in enumerate(each.of_a_file() for each in predictor.inputs):
        inner = prefix + _STEM.format(i)
        kind = {
            "FP64": TensorProto.DOUBLE,
            "FP32": TensorProto.FLOAT,
            "BYTES": TensorProto.STRING,
            "INT64": TensorProto.INT64,
        }
        inputs.append(helper.make_tensor_value_info(each.name, kind[each.datatype], ["rows", *each.shape]))
        before.append(
            _positions_node(each.name, inner, each.names)
            if each.datatype == "BYTES"
            else helper.make_node("Identity", [each.name], [inner])
        )
    first, *named = predictor.outputs
    outputs = [helper.make_tensor_value_info(first.name, TensorProto.FLOAT, ["rows", *first.shape])]
    after.append(helper.make_node("Identity", [f"{prefix}numbers"], [first.name]))
    for other in named:
        positions = list(range(len(predictor.classes)))
        after += [
            helper.make_node("ArgMax", [first.name], [f"{prefix}position"], axis=-1, keepdims=0),
            helper.make_node(
                "LabelEncoder",
                [f"{prefix}position"],
                [other.name],
                domain="ai.onnx.ml",
                keys_int64s=positions,
                values_strings=list(predictor.classes),
            ),
        ]
        outputs.append(helper.make_tensor_value_info(other.name, TensorProto.STRING, ["rows"]))
    nodes = [*before, *graph.node, *after]
    for node in nodes:  # where PyTorch leaves lines of source files, with their places on this machine
        del node.metadata_props[:]
    del graph.node[:], graph.input[:], graph.output[:], graph.metadata_props[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    if not any(each.domain == "ai.onnx.ml" for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    helper.set_model_props(model, {"tacit": json.dumps(predictor.named())})
    model.producer_name = "tacit"
    return onnx.ModelProto.FromString(model.SerializeToString())


def _positions_node(outer: str, inner: str, names: tuple[str, ...]) -> onnx.NodeProto:
    """Texts to positions; -1 for what is none of the names."""
    from onnx import helper

    spelled = [(text, i) for i, name in enumerate(names) for text in _spellings(name)]
    return helper.make_node(
        "LabelEncoder",
        [outer],
        [inner],
        domain="ai.onnx.ml",
        keys_strings=[text for text, _ in spelled],
        values_int64s=[i for _, i in spelled],
        default_int64=-1,
    )


def _spellings(name: str) -> list[str]:
    """A name as a file may spell it: a number matches by value in training, so by its usual forms here."""
    forms = [name.strip()]
    if NUMBER.fullmatch(name.strip()):
        value = float(name)
        forms += [repr(value), *([str(int(value))] if value.is_integer() and abs(value) < 1e15 else [])]
    return list(dict.fromkeys(forms))


def _agreed(predictor: Predictor, ask: Any) -> float:
    """The largest difference from the run's model; `RunFailed` where it is more than rounding."""
    raw = made_up(predictor.inputs, ROWS, seed=1)
    wanted, got = predictor.numbers(raw), ask(raw)
    if got.shape != wanted.shape:
        raise RunFailed(f"the exported model gives shape {got.shape}, the run's model {wanted.shape}")
    apart = largest_difference(got, wanted)
    if not apart <= MOST_APART * max(1.0, float(np.abs(wanted).max())):  # false for NaN too
        raise RunFailed(
            f"the exported model differs from the run's by {apart:.2g} on made-up records: not written"
        )
    return apart


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where a file is written; it takes its place when the block has come through.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            unfinished = Path(folder) / path.name
            yield unfinished
            unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror or error}", source=path, key="--out") from None
