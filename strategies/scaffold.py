"""SCAFFOLD (Karimireddy et al. 2020), option II, whose server needs nothing but the mean.

Option II sets a client's variate from what the client has just done: c_i+ = c_i - c + (x - y_i) / (K eta). Its change
is then a function of c and of the update y_i - x alone, and so is the sum of the changes: the server takes it from the
mean update that it has in any case. Nothing more travels up, and nothing more is to be bounded or paid for.

Variates are kept times K eta, in units of an update: u = c K eta, so that u_i+ = u_i - u - (y_i - x).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from tacit.encoding import VARIATE


class Scaffold(FedAvg):
    """The server's side.

    Args:
        total_weight: aggregation weights of all members together; the share of a round's is what the variate moves by.
        server_learning_rate: of the model's own step.
        options: of `FedAvg`.

    Guarantees:
        The server's variate is the weighted mean of the clients' own, to the encoding step, whoever takes part.
    """

    def __init__(self, *, total_weight: float, server_learning_rate: float, **options: Any) -> None:
        super().__init__(**options)
        self.total_weight, self.server_learning_rate = total_weight, server_learning_rate
        self.variate: dict[str, NDArray[Any]] = {}
        self.current: dict[str, NDArray[Any]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As `FedAvg`, with the variate beside the model."""
        self.current = {name: array.numpy() for name, array in arrays.items()}
        self.variate = self.variate or {name: np.zeros_like(array) for name, array in self.current.items()}
        messages = list(super().configure_train(server_round, arrays, config, grid))
        record = ArrayRecord({name: Array(array) for name, array in self.variate.items()})
        for content in {id(message.content): message.content for message in messages}.values():
            content[VARIATE] = record
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Algorithm 1, lines 16 and 17, from the mean of the updates alone."""
        replies = list(replies)
        record, metrics = super().aggregate_train(server_round, replies)
        if record is None:
            return None, metrics
        weights = (reply.content.metric_records["metrics"][self.weighted_by_key] for reply in replies)
        share = sum(float(str(weight)) for weight in weights) / self.total_weight
        moved = {name: array.numpy() - self.current[name] for name, array in record.items()}
        self.variate = {n: np.asarray(u - share * (u + moved[n])) for n, u in self.variate.items()}
        after = {name: x + self.server_learning_rate * moved[name] for name, x in self.current.items()}
        return ArrayRecord({name: Array(np.asarray(array)) for name, array in after.items()}), metrics
