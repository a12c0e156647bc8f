"""What sites and server agree on for a Flower app that is not ours: `bridge.toml`, and what follows from it.

The app trains and evaluates as it always did; of what it answers, only the difference of its model to the one
received and the metrics named here go into the secure sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import tomli_w
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from tacit.algorithms import Strategy
from tacit.config import Experiment, Federation, SecureAggregation, Site
from tacit.data.schema import Count, Frozen, Positive
from tacit.learning import Task, Training
from tacit.secagg.encoder import Encoder, Mean, MetricRange
from tacit.secagg.roster import Roster
from tacit.toml import first_problem, load_as
from tacit.update import Aggregate, Layout

FILE: Final = "bridge.toml"
Asks = Literal["train", "evaluate"]  # what a sum asks the app for
AppConfig = Mapping[str, str | int | float | bool]
Arrays = Mapping[str, NDArray[Any]]


class Terms(Frozen):
    """`bridge.toml`, the same text at the server and at every site.

    Attributes:
        app: the `ClientApp` as "module:object"; a site allows it in its policy's `allowed_tasks`.
        weights: every site counts alike, or in proportion to the size that it declared in the roster.
        rounds: the most sums of one run; a round of training is one, a round of evaluation another.
        train_metrics: largest absolute value of each metric of training that is sent, by name.
        evaluate_metrics: the same for evaluation; without any, no site evaluates.
        secure_aggregation: clip norm, resolution, c, D and deadlines, as in an experiment.
    """

    app: str
    weights: Literal["equal", "declared"] = "equal"
    rounds: Count = 1000
    train_metrics: dict[str, Positive] = Field(default_factory=dict)
    evaluate_metrics: dict[str, Positive] = Field(default_factory=dict)
    secure_aggregation: SecureAggregation = SecureAggregation()

    @model_validator(mode="after")
    def _secure(self) -> Terms:
        if not self.secure_aggregation.enabled or self.secure_aggregation.engine != "protocol":
            raise ValueError("secure_aggregation: a bridge without the secure sum is no bridge")
        return self

    @classmethod
    def load(cls, path: Path) -> Terms:
        """Reads the file.

        Raises:
            ConfigError: one line that names the file and the key.
        """
        return load_as(cls, path)

    def to_toml(self) -> str:
        """The file's text."""
        return tomli_w.dumps(self.model_dump(mode="json"))

    def metrics(self, asks: Asks) -> dict[str, float]:
        """Bound of each metric that is sent."""
        return self.train_metrics if asks == "train" else self.evaluate_metrics

    def experiment(
        self, federation: Federation, asks: Asks = "train", config: AppConfig | None = None
    ) -> Experiment:
        """The terms in the form that guard, policy and contexts know; its digest is what one sum is bound to.

        The configuration that the strategy sends to the app is part of it: a server that told each site something
        else would learn the update of the one site that it told to train.

        Raises:
            ConfigError: these members cannot make a sum by these terms, or a value is not finite.
        """
        told = {f"config.{name}": value for name, value in (config or {}).items()}
        bounds = {f"metric.{name}": bound for name, bound in self.metrics(asks).items()}
        try:
            return Experiment(
                name="bridge",
                task=Task(kind=self.app, options={"asks": asks, **bounds, **told}),
                training=Training(rounds=self.rounds),
                strategy=Strategy(weights=self.weights),
                secure_aggregation=self.secure_aggregation,
                federation=federation,
            )
        except ValidationError as error:
            raise first_problem(error, FILE) from None

    def encoder(self, asks: Asks, arrays: Arrays) -> Encoder:
        """The public encoding of an answer to these arrays.

        Arrays that are not of floating point (a counter of batches) have no mean: they stay as the server sent them.
        """
        c_int = 2**self.secure_aggregation.precision_bits
        ranges = {name: MetricRange(bound, bound / c_int) for name, bound in self.metrics(asks).items()}
        summed = {name: arrays[name] for name in summed_arrays(arrays)} if asks == "train" else {}
        layout = Layout.of(summed, tuple(ranges))
        encoder = AppEncoder(layout, self.secure_aggregation.update_clip, c_int, ranges)
        return replace(encoder, unchanged={n: a.shape for n, a in arrays.items() if n not in summed})


@dataclass(frozen=True)
class AppEncoder(Encoder):
    """An `Encoder` of some of the arrays of a model; of the others, no difference comes back.

    Attributes:
        unchanged: shapes of those, by name.
    """

    unchanged: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def decode(self, aggregate: Aggregate, noise: float = 0.0) -> Mean:
        """See `Encoder`."""
        mean = super().decode(aggregate, noise)
        return mean._replace(arrays={**mean.arrays, **{n: np.zeros(s) for n, s in self.unchanged.items()}})


def may_be_told(value: object) -> bool:
    """Whether a value of the strategy's configuration has one spelling: a text, a finite number, a truth value."""
    return isinstance(value, str | int) or (isinstance(value, float) and isfinite(value))


def summed_arrays(arrays: Arrays) -> list[str]:
    """Names of the arrays that have a mean, in their order."""
    return [name for name, array in arrays.items() if np.issubdtype(array.dtype, np.floating)]


def federation_of(roster: Roster) -> Federation:
    """The members that are not revoked, with what they declared."""
    entries = [roster.enrolled[index] for index in sorted(roster.active)]
    return Federation(sites=tuple(Site(label=e.member.label, rows=e.num_rows) for e in entries))
