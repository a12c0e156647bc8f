"""Views of records: what a step sees in the place of each, drawn anew from a stream of its own.

Guarantees:
    Views are drawn after the records of a step are, and change neither which these are nor how many.
    A task of one's own is given one record at a time, so that no view has anything of another one.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from tacit.config import Experiment
from tacit.errors import ConfigError
from tacit.tasks import Augments, Records, Task
from tacit.tasks.augmented import augmented, layout_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Views(Records):
    """Records with several views each: features of shape (rows, views, ...), targets of shape (rows, ...)."""

    @property
    def views(self) -> int:
        """Of each record."""
        return self.features.shape[1]

    @property
    def inputs(self) -> Tensor:
        """All views of a record, then those of the next one: shape (rows * views, ...)."""
        return self.features.flatten(0, 1)


class Augmentation:
    """Makes the views of a step's records; where none are asked for, a record is its own view.

    Args:
        experiment: says how many.
        task: says what they are.

    Raises:
        ConfigError: several are asked for of a task that makes none.
    """

    def __init__(self, experiment: Experiment, task: Task) -> None:
        settings = experiment.task.augment
        self._views: Final = settings.views
        self._augment: Callable[..., Tensor] | None = None
        self._alone: Final = experiment.task.is_own
        if settings.strengths:
            self._augment = partial(augmented, settings=settings, layout=layout_of(experiment))
        elif experiment.task.is_own and isinstance(task, Augments):
            self._augment = task.augment
        elif settings.views > 1:
            raise ConfigError(
                f"{settings.views} views are asked for, and {experiment.task.kind!r} has no "
                "augment(features, generator)",
                key="task.augment.views",
            )

    @property
    def is_on(self) -> bool:
        """Whether a step sees anything but the records themselves."""
        return self._augment is not None

    def seen(self, batch: Records, generator: torch.Generator) -> Records:
        """The views of a batch; nothing is drawn for an empty one.

        Raises:
            ConfigError: a task of one's own gives other than one view of each record that it is given.
        """
        if self._augment is None or not batch.num_rows:
            return batch
        features = batch.features.repeat_interleave(self._views, 0)
        parts = torch.split(features, self._views) if self._alone else [features]
        views = torch.cat([_checked(self._augment(part, generator=generator), part) for part in parts])
        return Views(views.reshape(-1, self._views, *batch.features.shape[1:]), batch.targets)


def _checked(views: Tensor, features: Tensor) -> Tensor:
    if views.shape != features.shape:
        raise ConfigError(
            "augment() must give as many views as it is given, in their shape: "
            f"{tuple(features.shape)}, not {tuple(views.shape)}",
            key="task.kind",
        )
    return views
