"""From a local update to the vector that is summed, and from the sum to the weighted mean.

    [ model | metrics | weight ]

Every block is scaled so that its bound is C_int, and the word width that holds n C_int holds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tacit.errors import ConfigError, ProtocolError, Refused
from tacit.secagg import ring, rows
from tacit.update import Aggregate, EncodedUpdate, Integers, Layout, LocalUpdate

Uniforms = Callable[[int], NDArray[np.float64]]


@dataclass(frozen=True)
class MetricRange:
    """What one client may report for one metric sum.

    Attributes:
        bound: largest absolute value; above 0.
        step: wanted resolution; above 0.
    """

    bound: float
    step: float

    def __post_init__(self) -> None:
        if not (isfinite(self.bound) and self.bound > 0 and isfinite(self.step) and self.step > 0):
            raise ConfigError("the bound and the step of a metric are finite numbers above 0")

    def resolution(self, c_int: int) -> float:
        """Value of one integer unit: `step`, or coarser where `bound` would not fit C_int of those."""
        return max(self.step, self.bound / c_int)

    def cut(self, value: float) -> float:
        """The nearest value within the bound; what a noised sum needs before it is encoded."""
        return min(max(value, -self.bound), self.bound)


class Mean(NamedTuple):
    """What a sum stands for.

    Attributes:
        arrays: weighted mean of the clients' deltas, float64, by name.
        total_weight: sum of the weights.
        metrics: metric sums over all clients, by name.
        below_clip: share of the clients whose update was not longer than the clip norm, with noise; None where the
            vectors have no such bit.
    """

    arrays: dict[str, NDArray[np.float64]]
    total_weight: float
    metrics: dict[str, float]
    below_clip: float | None = None


@dataclass(frozen=True)
class Encoder:
    """Public constants of one experiment: equal at every client and at the server.

    Attributes:
        layout: what stands where.
        clip: Euclidean norm that one client's delta is cut at.
        c_int: integer units that stand for `clip`, for a metric's bound and for the weight 1.
        metrics: range of each metric that `layout` names.
    """

    layout: Layout
    clip: float
    c_int: int
    metrics: Mapping[str, MetricRange] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (isfinite(self.clip) and self.clip > 0):
            raise ConfigError("must be a finite number above 0", key="secure_aggregation.update_clip")
        if set(self.metrics) != set(self.layout.metrics):
            raise ConfigError("each metric of the layout needs a range, and no other metric has one")

    def encode(self, update: LocalUpdate, uniforms: Uniforms) -> EncodedUpdate:
        """The vector of one client, shape (layout.size,).

        The delta is cut at `clip` and then multiplied by the weight, so a light client's delta is as free as
        a heavy one's. The weight is rounded to a multiple of 1/C_int first, so that numerator and denominator
        of the mean agree. Metric sums go to the nearest step.

        Args:
            update: weight in (0, 1]; metric sums within their declared bounds.
            uniforms: n -> n independent numbers in [0, 1), shape (n,).

        Raises:
            Refused: a number is not finite, the weight is not in (0, 1], a metric is beyond its bound.
            ProtocolError: "layout", the update has other arrays or metrics than the layout.
        """
        weight = self._weight_units(update.weight)
        metrics = self._metric_units(update.metrics)
        cut, clipped = ring.clip_norm(self.layout.flatten(update.delta), self.clip)
        model = ring.rounded(
            cut * (weight / self.c_int), clip=self.clip, c_int=self.c_int, uniforms=uniforms(cut.size)
        )
        scalars = np.array([*metrics, weight], dtype=np.int64)
        return EncodedUpdate(np.concatenate([model, scalars]), clipped)

    @property
    def num_uniforms(self) -> int:
        """How many random numbers `encode` asks for."""
        return self.layout.model_size

    def encode_rows(
        self,
        deltas: NDArray[np.floating],
        weights: Sequence[float],
        metrics: Sequence[Mapping[str, float]],
        uniforms: NDArray[np.float64],
    ) -> tuple[Integers, NDArray[np.bool_]]:
        """`encode` for many clients at once: row i is the vector that client i gets from it alone.

        Args:
            deltas: model blocks, shape (clients, layout.model_size), finite.
            weights: of each client.
            metrics: of each client.
            uniforms: shape (clients, num_uniforms).

        Returns:
            Shape (clients, layout.size), and whose update was longer than the clip norm, shape (clients,).

        Raises:
            Refused, ProtocolError: as `encode`.
        """
        units = np.array([self._weight_units(weight) for weight in weights], dtype=np.int64)
        cut, clipped = rows.clip_norms(deltas, self.clip)
        cut *= (units / self.c_int)[:, None]
        out = np.empty((len(deltas), self.layout.size), dtype=np.int64)
        size = self.layout.model_size
        out[:, :size] = rows.rounded(cut, clip=self.clip, c_int=self.c_int, uniforms=uniforms)
        for row, values in zip(out, metrics, strict=True):
            row[size:-1] = self._metric_units(values)
        out[:, -1] = units
        return out, clipped

    def decode(self, aggregate: Aggregate, noise: float = 0.0) -> Mean:
        """The weighted mean delta, the total weight and the metric sums.

        Args:
            aggregate: shape (layout.size,).
            noise: standard deviation of the noise in each coordinate of the sum, in integer units.

        Raises:
            ProtocolError: no sum of vectors of this encoder looks like this: masks have not cancelled, or a
                client did not keep to its bounds.
        """
        self._check_sum(aggregate, noise)
        size = self.layout.model_size
        weight = int(aggregate.values[-1]) / self.c_int
        total = ring.decode(aggregate.values[:size], self.clip, self.c_int, size)
        sums = {
            name: float(units * self.metrics[name].resolution(self.c_int))
            for name, units in zip(self.layout.metrics, aggregate.values[size:-1], strict=True)
        }
        return Mean(self.layout.unflatten(total / weight), weight, sums)

    def _weight_units(self, weight: float) -> int:
        if not 0 < weight <= 1:  # false for NaN too
            raise Refused("weight", "an aggregation weight is above 0 and at most 1")
        return max(1, round(weight * self.c_int))

    def _metric_units(self, values: Mapping[str, float]) -> list[int]:
        if set(values) != set(self.layout.metrics):
            raise ProtocolError("layout", "the update has other metrics than the layout")
        units = []
        for name in self.layout.metrics:
            allowed = self.metrics[name]
            if not -allowed.bound <= values[name] <= allowed.bound:  # false for NaN too
                raise Refused("metric-bound", f"the sum of {name!r} is beyond its declared bound")
            units.append(round(values[name] / allowed.resolution(self.c_int)))
        return units

    def _check_sum(self, aggregate: Aggregate, noise: float) -> None:
        """The norm test of the model block and the range of every other coordinate."""
        values, size, bound = aggregate.values, self.layout.model_size, aggregate.num_clients * self.c_int
        if values.shape != (self.layout.size,):
            raise ProtocolError("layout", "the aggregate has another length than the layout")
        # A Gaussian vector is longer than sigma (sqrt(d) + 8) with probability below exp(-32).
        if ring.squared_norm(values[:size]) > (bound + noise * (sqrt(size) + 8)) ** 2:
            raise ProtocolError("aggregate-norm", "the sum is longer than its clients' bounds allow")
        if not self._scalars_fit(values[size:], bound + 12 * noise):
            raise ProtocolError("aggregate-range", "a metric or the weight is out of range")

    def _scalars_fit(self, scalars: Integers, bound: float) -> bool:
        return bool(np.abs(scalars).max() <= bound and scalars[-1] > 0)
