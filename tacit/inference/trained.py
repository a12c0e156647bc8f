"""A model rebuilt from the folder of the run that trained it.

model.safetensors   its arrays
experiment.toml     which task and model, and the schema that its records are read by
scaling.json        center and scale, where the sites have computed them together

`tacit simulate` writes the three into the run's folder, `tacit server` into that of each run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tacit import config
from tacit.encoding import needs_statistics, scaling_constants
from tacit.errors import ConfigError, ProtocolError, StorageError
from tacit.personal import personal_names
from tacit.tasks import Task, load_task
from tacit.tasks.tabular import Tabular
from tacit.tasks.weights import Arrays, build_model, load_arrays

if TYPE_CHECKING:
    from torch import nn

MODEL: Final = "model.safetensors"
EXPERIMENT: Final = "experiment.toml"
SCALING: Final = "scaling.json"


@dataclass(frozen=True)
class Trained:
    """A trained model and what it takes to read a record as it did in training.

    Attributes:
        experiment: of the run.
        task: with the constants of a federated scaling, where there are any.
        model: in evaluation mode.
    """

    experiment: config.Experiment
    task: Task
    model: nn.Module

    @classmethod
    def open(cls, folder: Path) -> Trained:
        """The model of a finished run. A task of the user's own is imported, as in training.

        Raises:
            ConfigError: the folder holds no trained model, or not what this model was trained with.
            StorageError: a file is damaged.
        """
        path = folder / MODEL
        if not path.is_file():
            raise ConfigError(
                f"holds no {MODEL}: a run writes it when it has finished", source=folder, key="RUN"
            )
        with _readable(folder / EXPERIMENT):
            text = (folder / EXPERIMENT).read_text(encoding="utf-8")
        experiment = config.loads(text, source=str(folder / EXPERIMENT))
        task = _scaled(load_task(experiment), experiment, folder / SCALING)
        model = build_model(task, private=experiment.privacy.record is not None)
        if personal_names(experiment, model):
            raise ConfigError(
                "is only the part of the model that travels: each site keeps the rest", source=path, key="RUN"
            )
        try:
            load_arrays(model, read_model(path))
        except ConfigError as error:
            raise ConfigError(f"{error.reason}: it belongs to another run", source=path) from None
        return cls(experiment, task, model.eval())


def read_model(path: Path) -> Arrays:
    """The arrays of a model file.

    Raises:
        StorageError: it cannot be read, or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    with _readable(path):
        try:
            arrays: Arrays = load(path.read_bytes())
        except SafetensorError:
            raise StorageError(f"{path}: damaged") from None
    return arrays


def _scaled(task: Task, experiment: config.Experiment, path: Path) -> Task:
    if not needs_statistics(experiment) or not isinstance(task, Tabular):
        return task
    with _readable(path):
        try:
            return task.with_constants(scaling_constants(path.read_text(encoding="utf-8")))
        except (ProtocolError, ConfigError):
            raise StorageError(f"{path}: damaged, or of another run") from None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{path}: cannot be read: {reason}") from None
