"""From raw records to predictions in one module: preparing, the trained model, and outputs that a reader understands.

classes    "probabilities" of shape (rows, classes), float32, and "class": the name of the most probable one
numbers    "prediction" of shape (rows, outputs), float32, in the target's own unit
ranks      "scores" of shape (rows, items), float32; of a place without an item it says nothing
own task   "outputs", as the task's model gives them

An output whose name is a column's has "_" behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tacit.errors import ConfigError
from tacit.inference.inputs import Input, Raw, inputs_of
from tacit.inference.trained import Trained
from tacit.learning import CLASSES, NUMBERS, RANKING, SYNTHESIS
from tacit.tasks.arrays import ArrayClassification, ArrayRanking, ArrayRegression
from tacit.tasks.tabular import TabularClassification
from tacit.tasks.text import TextClassification


class Output(NamedTuple):
    """One named output: its datatype in the words of the Open Inference Protocol, and the shape of one record."""

    name: str
    datatype: str
    shape: tuple[int, ...] = ()


class Predictor:
    """A trained model that takes raw records.

    Args:
        trained: the model.
        example: see `inputs_of`.

    Raises:
        ConfigError: what the task predicts has no outputs here.
    """

    def __init__(self, trained: Trained, example: Path | None = None) -> None:
        task = trained.experiment.task
        if task.kind in SYNTHESIS:
            raise ConfigError(
                f'"{task.kind}" predicts nothing: tacit synthesize RUN makes rows up', key="task.kind"
            )
        if not (task.is_own or task.kind in (*CLASSES, *NUMBERS, *RANKING)):
            raise ConfigError(
                f'"{task.kind}" predicts neither a class, numbers nor ranks: its model is not exported or served',
                key="task.kind",
            )
        self.name = trained.experiment.name.replace(" ", "-")
        self.reader = inputs_of(trained, example)
        self.inputs: tuple[Input, ...] = self.reader.inputs
        self.classes = _classes(trained)
        self._task = trained.task
        self.module: nn.Module = Whole(self.reader.features(), trained).eval().requires_grad_(False)
        self.outputs = self._outputs(trained)

    def _outputs(self, trained: Trained) -> tuple[Output, ...]:
        if self.classes:
            return (
                Output(self._free("probabilities"), "FP32", (len(self.classes),)),
                Output(self._free("class"), "BYTES"),
            )
        if isinstance(trained.task, ArrayRegression):
            return (Output(self._free("prediction"), "FP32", (trained.task.schema.outputs,)),)
        if isinstance(trained.task, ArrayRanking):
            return (Output("scores", "FP32", trained.task.schema.shape[1:]),)
        rows = torch.zeros(2, *self.inputs[0].shape)
        with torch.inference_mode():
            return (Output("outputs", "FP32", tuple(self.module(rows).shape[1:])),)

    def _free(self, name: str) -> str:
        """An output's name, with "_" behind it where a column has that name."""
        while name in {each.name for each in self.inputs}:
            name += "_"
        return name

    def numbers(self, raw: Raw) -> NDArray[np.float32]:
        """The first output, shape (rows, ...).

        Raises:
            ProtocolError: see `Inputs.tensors`.
        """
        with torch.inference_mode():
            outputs: Tensor = self.module(*self.reader.tensors(raw))
        return outputs.numpy()

    def predict(self, raw: Raw) -> dict[str, NDArray[Any]]:
        """Every output by name; texts have dtype object."""
        numbers = self.numbers(raw)
        found: dict[str, NDArray[Any]] = {self.outputs[0].name: numbers}
        if self.classes:
            found[self.outputs[1].name] = np.array(self.classes, dtype=object)[numbers.argmax(-1)]
        return found

    def score(self, numbers: NDArray[np.float32], targets: Tensor) -> tuple[str, float]:
        """What outputs are worth: accuracy, root mean squared error, NDCG, or the mean loss of a user's own task."""
        if self.classes:
            return "accuracy", float((numbers.argmax(-1) == targets.numpy()).mean())
        if isinstance(self._task, ArrayRegression):
            return "rmse", float(np.sqrt(np.mean((numbers - targets.numpy()) ** 2)))
        if isinstance(self._task, ArrayRanking):
            return "ndcg", self._task.summary(torch.from_numpy(numbers), targets)["ndcg"]
        return "loss", float(self._task.loss(torch.from_numpy(numbers), targets).double().mean())

    def named(self) -> dict[str, Any]:
        """Inputs, outputs and classes, for whoever has the exported model alone."""
        return {
            "name": self.name,
            "inputs": [each.of_a_file()._asdict() for each in self.inputs],
            "outputs": [each._asdict() for each in self.outputs],
            "classes": list(self.classes),
        }


class Whole(nn.Module):
    """Preparing, model and the first output, with one tensor per input."""

    def __init__(self, prepare: nn.Module, trained: Trained) -> None:
        super().__init__()
        self.prepare, self.model = prepare, trained.model
        self._classes = bool(_classes(trained))
        self._ranks = isinstance(trained.task, ArrayRanking)
        self._affine = (1.0, 0.0)
        if isinstance(trained.task, ArrayRegression):
            self._affine = (trained.task.schema.target_scale, trained.task.schema.target_center)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The first output, shape (rows, ...)."""
        outputs: Tensor = self.model(self.prepare(*inputs))
        if self._classes:
            return outputs.softmax(-1)
        if self._ranks:
            return outputs.squeeze(-1)
        scale, center = self._affine
        return outputs if self._affine == (1.0, 0.0) else outputs * scale + center


def _classes(trained: Trained) -> tuple[str, ...]:
    if isinstance(trained.task, TabularClassification | ArrayClassification | TextClassification):
        return trained.task.schema.classes
    return ()


def largest_difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Of two sets of outputs."""
    return float(np.abs(one.astype(np.float64) - other).max())


def shown(names: Sequence[Input | Output], most: int = 6) -> str:
    """Names and datatypes in one line."""
    parts = [f"{each.name} {each.datatype}{list(each.shape) or ''}" for each in names[:most]]
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*parts, *more])
