"""The task of an experiment, tried on a few rows before the rounds begin.

At a real site a mistake in a task stays at that site, and the server hears only "failed". Here everything is on one
machine and belongs to one person, so it can be said in one line which method is wrong, how, and where.
"""

from __future__ import annotations

import logging
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import nn

from client.draws import generator_on
from client.training import LocalTrainer, check_alone
from client.views import Augmentation
from tacit.config import Experiment
from tacit.data import readers
from tacit.errors import ConfigError, TacitError
from tacit.privacy.plan import PrivacyPlan
from tacit.tasks import Records, Task, load_task
from tacit.tasks.weights import build_model

LOG: Final = logging.getLogger(__name__)
ROWS = 4
KNOWN: Final = {".npz", ".csv", *readers.TAB_SUFFIXES, *readers.PARQUET_SUFFIXES}
ROOT = Path(__file__).parents[1]
INSTALLED = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
NOT_OWN = (*INSTALLED, ROOT / "tacit", ROOT / "simulations")
Result = TypeVar("Result")


def try_task(experiment: Experiment, data: Path) -> None:
    """Reads one site's file, builds the model and computes loss and metrics of its first rows.

    Args:
        experiment: with its sites declared.
        data: the file of one site.

    Raises:
        ConfigError: the task cannot be trained as it is, or not on this machine.
        DataError: the file cannot be read.
    """
    trial = _Trial(experiment.task.kind)
    task = trial.of("import", lambda: load_task(experiment))
    if experiment.task.is_own:
        private = experiment.privacy.record is not None
        model = trial.of("model()", lambda: build_model(task, private=private))
        _try_methods(trial, task, model, data, Augmentation(experiment, task) if private else None)
    LocalTrainer(task, PrivacyPlan.of(experiment), experiment)  # says which layer cannot be made private


def _try_methods(
    trial: _Trial, task: Task, model: nn.Module, data: Path, augmentation: Augmentation | None
) -> None:
    """With the augmentation of a private run."""
    num_read = 0
    for split in ("test", "train"):
        records = trial.of("read()", lambda split=split: task.read(data, split))  # type: ignore[misc]
        trial.expect(
            isinstance(records, Records) and len(records.features) == len(records.targets),
            "read() gives no tacit.tasks.Records of as many features as targets",
        )
        num_read += records.num_rows
    if augmentation is not None:
        _warn_of_copies(num_read, data)
    features, targets = records.features[:ROWS], records.targets[:ROWS]
    model.eval()
    with torch.no_grad():
        outputs = trial.of("the model's forward()", lambda: model(features))
    for name, values in {
        "loss()": trial.of("loss()", lambda: task.loss(outputs, targets)),
        **trial.of("metrics()", lambda: _named_metrics(task, outputs, targets)),
    }.items():
        shape, wanted = tuple(getattr(values, "shape", ())), (len(targets),)
        trial.expect(shape == wanted, f"{name} has shape {shape}: one value per record is needed, {wanted}")
    if augmentation is not None:
        few, draws = Records(features[:2], targets[:2]), generator_on(torch.device("cpu"), bytes(32))
        trial.of("augment()", lambda: augmentation.seen(few, draws))
        trial.of("the model", lambda: check_alone(model.train(), task, records))


def _warn_of_copies(num_read: int, data: Path) -> None:
    """Says where a row of the file has become several records, each of which is protected by itself.

    Windows of a series are meant to be; views of one record are not, and nothing tells them apart.
    """
    if not data.is_dir() and data.suffix.lower() not in KNOWN:
        return
    try:
        num_rows = readers.num_rows(data)
    except TacitError:  # a format of the task's own
        return
    if num_read > num_rows:
        LOG.warning(
            "read() gives %d records of a file of %d: the promise is for one of them, and a row that has several is "
            "protected less; views of a record belong into augment(), where they count as one",
            num_read, num_rows,
        )  # fmt: skip


def _named_metrics(task: Task, outputs: Any, targets: Any) -> dict[str, Any]:
    values = task.metrics(outputs, targets)
    if set(values) != set(task.metric_names):
        raise ValueError(f"gives {sorted(values)}, and metric_names are {sorted(task.metric_names)}")
    return {f"metrics()[{name!r}]": value for name, value in values.items()}


class _Trial:
    """Turns what a user's code raises into one line that names method and place."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def of(self, what: str, call: Callable[[], Result]) -> Result:
        """The result of `call`."""
        try:
            return call()
        except TacitError:
            raise
        except Exception as error:  # a user's code may raise anything
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ConfigError(f"{self._kind}: {what}: {message}{_place(error)}", key="task.kind") from error

    def expect(self, right: bool, otherwise: str) -> None:
        """Raises `ConfigError` unless `right`."""
        if not right:
            raise ConfigError(f"{self._kind}: {otherwise}", key="task.kind")


def _place(error: Exception) -> str:
    """The innermost line of the user's own code that the error came through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and not any(file.is_relative_to(folder) for folder in NOT_OWN):
            return f" ({file.name}:{frame.lineno})"
    return ""
