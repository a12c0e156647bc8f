"""The encoding under a promise for clients: one vector of bounded norm, so that one noise covers all of it.

    [ model | metrics | bit ]

Each block is scaled to its share of the bound, a public constant; the squares of the shares add up to 1. There is no
weight: every client counts once, and how many are in a sum is public.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from tacit.errors import ConfigError, ProtocolError, Refused
from tacit.secagg import ring, rows
from tacit.secagg.encoder import Encoder, Mean, Uniforms
from tacit.update import Aggregate, EncodedUpdate, Integers, LocalUpdate


@dataclass(frozen=True)
class ClientLevelEncoder(Encoder):
    """Public constants of one experiment, as `Encoder`, and how the bound is shared.

    Attributes:
        model_share: of the model block, in (0, 1]; what is left of the bound, metrics and bit share equally. A vector
            with neither gives all of it to the model.

    Guarantees:
        sum(int(x)**2) <= C_int**2 over the whole vector (model, metrics and bit), for every update and every draw.
    """

    model_share: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout.last == "weight":
            raise ConfigError("a promise for clients has no aggregation weights")
        if not 0 < self.model_share <= 1 or (self.model_share == 1 and self._others):
            raise ConfigError("leaves nothing for metrics and bit", key="privacy.client.model_share")

    def encode(self, update: LocalUpdate, uniforms: Uniforms) -> EncodedUpdate:
        """The vector of one client, shape (layout.size,), without noise.

        The delta is cut at `clip`. The bit is 1 where nothing was cut, else -1, so that it moves the sum by no more
        than its share either way. One test of the norm, over all coordinates and after all scaling, stands at the end.

        Args:
            update: metric sums within their declared bounds; its weight is 1.
            uniforms: n -> n independent numbers in [0, 1), shape (n,).

        Raises:
            Refused: a number is not finite, the weight is not 1, a metric is beyond its bound.
            ProtocolError: "layout", the update has other arrays or metrics than the layout.
        """
        if update.weight != 1:
            raise Refused("weight", "under a promise for clients every one counts alike")
        cut, clipped = ring.clip_norm(self.layout.flatten(update.delta), self.clip)
        shares = self.shares
        blocks = [cut * (shares["model"] / self.clip)]
        if self.layout.metrics:
            blocks.append(
                self._metrics(update.metrics) * (shares["metrics"] / sqrt(len(self.layout.metrics)))
            )
        if self.layout.last == "bit":
            blocks.append(np.array([-shares["bit"] if clipped else shares["bit"]]))
        whole = np.concatenate(blocks)
        values, _ = ring.encode(whole, clip=1.0, c_int=self.c_int, uniforms=uniforms(whole.size))
        return EncodedUpdate(values, clipped)

    @property
    def num_uniforms(self) -> int:
        """See `Encoder`."""
        return self.layout.size

    def encode_rows(
        self,
        deltas: NDArray[np.floating],
        weights: Sequence[float],
        metrics: Sequence[Mapping[str, float]],
        uniforms: NDArray[np.float64],
    ) -> tuple[Integers, NDArray[np.bool_]]:
        """See `Encoder`."""
        if any(weight != 1 for weight in weights):
            raise Refused("weight", "under a promise for clients every one counts alike")
        cut, clipped = rows.clip_norms(deltas, self.clip)
        shares, size = self.shares, self.layout.model_size
        whole = np.empty((len(deltas), self.layout.size))
        np.multiply(cut, shares["model"] / self.clip, out=whole[:, :size])
        if self.layout.metrics:
            scale = shares["metrics"] / sqrt(len(self.layout.metrics))
            for row, values in zip(whole, metrics, strict=True):
                row[size : size + len(self.layout.metrics)] = self._metrics(values) * scale
        if self.layout.last == "bit":
            whole[:, -1] = np.where(clipped, -shares["bit"], shares["bit"])
        bounded, _ = rows.clip_norms(whole, 1.0)
        return rows.rounded(bounded, clip=1.0, c_int=self.c_int, uniforms=uniforms), clipped

    def decode(self, aggregate: Aggregate, noise: float = 0.0) -> Mean:
        """The mean delta, the number of clients, the metric sums and the share of updates below the clip norm.

        Args:
            aggregate: shape (layout.size,).
            noise: standard deviation of the noise in each coordinate of the sum, in integer units.

        Raises:
            ProtocolError: no sum of vectors of this encoder looks like this.
        """
        layout, shares, n = self.layout, self.shares, aggregate.num_clients
        if aggregate.values.shape != (layout.size,) or n < 1:
            raise ProtocolError("layout", "the aggregate has another length than the layout")
        # A Gaussian vector is longer than sigma (sqrt(d) + 8) with probability below exp(-32).
        if ring.squared_norm(aggregate.values) > (n * self.c_int + noise * (sqrt(layout.size) + 8)) ** 2:
            raise ProtocolError("aggregate-norm", "the sum is longer than its clients' bounds allow")
        total = ring.decode(aggregate.values, 1.0, self.c_int, layout.size)
        model = total[: layout.model_size] * (self.clip / (shares["model"] * n))
        metrics = total[layout.model_size : layout.model_size + len(layout.metrics)]
        unit = sqrt(len(layout.metrics)) / shares["metrics"] if layout.metrics else 0.0
        sums = {
            name: float(value * unit * self.metrics[name].bound)
            for name, value in zip(layout.metrics, metrics, strict=True)
        }
        below = None if layout.last != "bit" else (1 + float(total[-1]) / (shares["bit"] * n)) / 2
        return Mean(layout.unflatten(model), float(n), sums, below)

    @property
    def shares(self) -> dict[str, float]:
        """Each block's share of the bound; the squares add up to 1."""
        if not self._others:
            return {"model": 1.0}
        rest = sqrt((1 - self.model_share**2) / len(self._others))
        return {"model": self.model_share, **dict.fromkeys(self._others, rest)}

    @property
    def _others(self) -> list[str]:
        """The blocks besides the model."""
        return ["metrics"] * bool(self.layout.metrics) + ["bit"] * (self.layout.last == "bit")

    def _metrics(self, values: Mapping[str, float]) -> NDArray[np.float64]:
        """Metric sums over their bounds: each in [-1, 1]."""
        if set(values) != set(self.layout.metrics):
            raise ProtocolError("layout", "the update has other metrics than the layout")
        scaled = np.array([values[name] / self.metrics[name].bound for name in self.layout.metrics])
        if not (np.abs(scaled) <= 1).all():  # false for NaN too
            raise Refused("metric-bound", "a metric sum is beyond its declared bound")
        return scaled
