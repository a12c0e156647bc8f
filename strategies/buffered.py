"""FedBuff (Nguyen et al. 2022) over secure cohorts: several rounds are under way at a time, each a sum of its own.

Inside a cohort the protocol is synchronous, and all of it trains from one model; between cohorts nobody waits. Where
FedBuff takes single updates as they come, here a sum that comes before its turn waits for it: round r always begins
from the model after round r - M, so that a run which is killed and resumed, or simulated, makes the same model.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from tacit.algorithms import begins_from


class FedBuff(FedAvg):
    """The server's side.

    Args:
        cohorts_at_once: M, rounds that are under way at a time.
        server_learning_rate: of the server's step; Nguyen et al. 2022, section 5, weigh an update that is s rounds old
            by 1/sqrt(1 + s) of it, and so does this.
        options: of `FedAvg`.

    Guarantees:
        The model of a round is the one before, moved by what its cohort's mean is away from the model it began from.
    """

    def __init__(self, *, cohorts_at_once: int, server_learning_rate: float, **options: Any) -> None:
        super().__init__(**options)
        self.cohorts_at_once, self.server_learning_rate = cohorts_at_once, server_learning_rate
        self.current: dict[str, NDArray[Any]] = {}
        self.earlier: dict[
            str, NDArray[Any]
        ] = {}  # models that rounds under way began from, by round and name

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As `FedAvg`, from the model that the round begins from.

        Args:
            server_round: that is to begin.
            arrays: the newest model; that of round `server_round` - M, unless earlier ones have been kept.
            config: see `FedAvg`.
            grid: see `FedAvg`.
        """
        newest = {name: array.numpy() for name, array in arrays.items()}
        self.current = self.current or newest
        began = self._model(server_round, newest)
        record = ArrayRecord({name: Array(array) for name, array in began.items()})
        return super().configure_train(server_round, record, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model, from the mean of a cohort that may have begun some rounds ago."""
        record, metrics = super().aggregate_train(server_round, replies)
        if record is None:
            return None, metrics
        base = begins_from(server_round, self.cohorts_at_once)
        began, rate = self._model(server_round, self.current), self.server_learning_rate
        rate /= sqrt(1 + (server_round - 1 - base))
        moved = {name: array.numpy() - began[name] for name, array in record.items()}
        self.current = {name: np.asarray(x + rate * moved[name]) for name, x in self.current.items()}
        oldest = begins_from(server_round + 1, self.cohorts_at_once)
        self.earlier = {key: array for key, array in self.earlier.items() if int(key.split(" ")[0]) >= oldest}
        return ArrayRecord({name: Array(array) for name, array in self.current.items()}), metrics

    def _model(self, server_round: int, newest: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The model that a round begins from, which is kept from now on."""
        base = begins_from(server_round, self.cohorts_at_once)
        for name, array in newest.items():
            self.earlier.setdefault(f"{base} {name}", array)
        return {name: self.earlier[f"{base} {name}"] for name in newest}
