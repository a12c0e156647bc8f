"""Round 0 at one site: the sums that center and scale of a federated scaling are made of, noised here."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from client.site import Site
from tacit.data.preprocessing import Constants
from tacit.data.schema import Schema
from tacit.data.statistics import sensitivity
from tacit.encoding import STATISTICS, scaling_constants
from tacit.errors import Refused
from tacit.privacy.noise import Keys, Stream
from tacit.privacy.plan import PrivacyPlan
from tacit.tasks import Task
from tacit.update import LocalUpdate


@runtime_checkable
class Scalable(Protocol):
    """A task whose records can be scaled by constants that the sites compute together."""

    schema: Schema

    def statistics(self, path: Path) -> NDArray[np.float64]:
        """Sums over the training records of a file, exact."""
        ...

    def with_constants(self, constants: Constants) -> Task:
        """The same task, reading records with these constants."""
        ...


def statistics(task: Task, site: Site, plan: PrivacyPlan, keys: Keys) -> LocalUpdate:
    """The site's sums plus noise of standard deviation noise_multiplier * sensitivity.

    Guarantees:
        No exact local statistic leaves a site in a private run.
    """
    noise_multiplier = plan.statistics_noise_multiplier
    if noise_multiplier is None or not isinstance(task, Scalable):
        raise Refused("statistics", "this experiment has no federated scaling")
    sums = task.statistics(site.data)
    stream = Stream(keys.key("statistics", site.label))
    noised = sums + stream.gaussian(sums.shape, noise_multiplier * sensitivity(task.schema))
    return LocalUpdate({STATISTICS: noised}, 1.0, {})


def scaled(task: Task, scaling: str) -> Task:
    """The task with the constants of a scaling; the task itself where there is none."""
    if not scaling:
        return task
    if not isinstance(task, Scalable):
        raise Refused("scaling", "the task has no scaling")
    return task.with_constants(scaling_constants(scaling))
