"""Somebody else's strategy over the secure sum: `Strategy.start(grid=...)` of Flower runs unchanged.

Each call of `send_and_receive` is one sum. Training and evaluation are counted together, so that no site can be led
back to an earlier sum.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from strategies.coordinator import Coordinator
from strategies.grids import WrappedGrid
from strategies.mean_only import check_mean_only
from strategies.secure_grid import SecureAggregationGrid
from strategies.sum_grid import Agreement
from tacit.bridge import AppConfig, Arrays, Asks, Terms, federation_of, may_be_told, summed_arrays
from tacit.encoding import WEIGHT
from tacit.errors import ConfigError
from tacit.secagg.encoder import Encoder
from tacit.secagg.members import Member
from tacit.secagg.parameters import Rules

LOG: Final = logging.getLogger(__name__)
RECORDS: Final = {"arrays", "config"}  # as Flower's strategies call them


class BridgeGrid(WrappedGrid):
    """A Flower app's grid, with the secure sum inside.

    Args:
        grid: the app's own.
        strategy: the app's own; refused if it needs more than the mean.
        terms: `bridge.toml`.
        coordinator: who this server is.
        run: an id that no run of this federation has had.
        nodes: node of each member that takes part, by label.
        mean_only: take the word of the caller that `strategy` needs the mean only.

    Raises:
        ConfigError: the strategy cannot be served, or the members cannot make a sum by these terms.
    """

    def __init__(
        self,
        grid: Grid,
        strategy: Strategy,
        terms: Terms,
        coordinator: Coordinator,
        run: str,
        nodes: Mapping[str, int],
        *,
        mean_only: bool = False,
    ) -> None:
        super().__init__(grid)
        if not mean_only:
            check_mean_only(strategy)
        self._strategy, self._terms, self._coordinator, self._run = strategy, terms, coordinator, run
        enrolled = {member.label: member for member in coordinator.roster.members}
        self._members: dict[int, Member] = {node: enrolled[label] for label, node in nodes.items()}
        self._federation = federation_of(coordinator.roster)
        self._weighted_by = str(getattr(strategy, "weighted_by_key", WEIGHT))
        self._num_sums = 0
        self._dtypes: dict[str, np.dtype[Any]] = {}
        terms.experiment(self._federation)  # refuses impossible terms before anything is sent

    def get_node_ids(self) -> Iterable[int]:
        """The members' nodes; a strategy can sample no others."""
        return list(self._members)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """One combined reply: the mean of the models, or of the metrics. None for an evaluation that is not agreed on.

        Raises:
            ConfigError: what the strategy sends cannot be summed.
            RunFailed: no sum over enough sites came about. The run ends here, because a round that was asked for again
                would release another update of the same model.
        """
        messages = list(messages)
        if not messages:
            return []
        asks = asked(messages)
        if asks == "evaluate" and not self._terms.evaluate_metrics:
            LOG.warning("no site evaluates: bridge.toml names no evaluate_metrics")
            return []
        content = same_content(messages)
        config, model = app_config(content), self._as_at_first(content.array_records["arrays"])
        self._num_sums += 1
        marked = RecordDict({"arrays": model, "tacit": ConfigRecord({"round": self._num_sums})})
        [mean] = self._secure(asks, config, timeout).send_and_receive(
            [Message(marked, m.metadata.dst_node_id, m.metadata.message_type) for m in messages]
        )
        return [Message(self._reply(asks, model, mean.content), reply_to=messages[0])]

    def _secure(self, asks: Asks, config: AppConfig, timeout: float | None) -> SecureAggregationGrid:
        """The secure sum that is bound to what is asked for and what the app is told."""
        settings = self._terms.secure_aggregation

        def encoder(arrays: Arrays, clip: float | None = None) -> Encoder:
            return self._terms.encoder(asks, arrays)  # the clip norm never adapts here

        agreement = Agreement(
            run=self._run,
            config=self._terms.experiment(self._federation, asks, config).to_toml(),
            members=self._members,
            rules=Rules.of(settings),
            encoder=encoder,
            deadline_seconds=min(settings.deadline_seconds, timeout or math.inf),
        )
        first = _FirstMessages(self._grid, asks, config)
        return SecureAggregationGrid(first, self._strategy, agreement, self._coordinator, mean_only=True)

    def _as_at_first(self, model: ArrayRecord) -> ArrayRecord:
        """The model with the types of the first one: a strategy's mean of integers is of floating point."""
        self._dtypes = self._dtypes or {name: np.dtype(array.dtype) for name, array in model.items()}
        if all(self._dtypes.get(name) == array.dtype for name, array in model.items()):
            return model
        return ArrayRecord(
            {name: Array(_cast(a.numpy(), self._dtypes.get(name))) for name, a in model.items()}
        )

    def _reply(self, asks: Asks, sent: ArrayRecord, summed: RecordDict) -> RecordDict:
        """What one client with the mean of all would have answered."""
        sums = {name: float(str(value)) for name, value in summed.metric_records["metrics"].items()}
        weight = sums.pop(WEIGHT)
        metrics = {name: value / weight for name, value in sums.items()}
        reply = RecordDict({"metrics": MetricRecord({self._weighted_by: weight, **metrics})})
        if asks == "train":
            received = {name: array.numpy() for name, array in sent.items()}
            mean, moved = summed.array_records["arrays"], summed_arrays(received)
            model = {n: _cast(mean[n].numpy(), a.dtype) if n in moved else a for n, a in received.items()}
            reply["arrays"] = ArrayRecord({name: Array(array) for name, array in model.items()})
        return reply


class _FirstMessages(WrappedGrid):
    """Adds to the first message of a sum what it asks the app for, and what the strategy tells the app."""

    def __init__(self, grid: Grid, asks: Asks, config: AppConfig) -> None:
        super().__init__(grid)
        self._records = {"bridge": ConfigRecord({"asks": asks}), "config": ConfigRecord(dict(config))}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See Flower's `Grid`."""
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type == "train.tacit0":
                for name, record in self._records.items():
                    message.content[name] = record
        return super().push_messages(messages)


def _cast(array: NDArray[Any], dtype: np.dtype[Any] | None) -> NDArray[Any]:
    whole = dtype is not None and not np.issubdtype(dtype, np.floating)
    return np.asarray(np.rint(array) if whole else array, dtype=dtype)


def asked(messages: list[Message]) -> Asks:
    """What a strategy's messages ask for; `ConfigError` for anything but training and evaluation."""
    kinds = {message.metadata.message_type for message in messages}
    if kinds == {"train"}:
        return "train"
    if kinds == {"evaluate"}:
        return "evaluate"
    raise ConfigError(f"messages of type {', '.join(sorted(kinds))} have no place in a secure sum")


def same_content(messages: list[Message]) -> RecordDict:
    """What all sites are sent.

    Raises:
        ConfigError: they are sent different things, so that their updates have no mean; or other records than Flower's
            strategies send.
    """
    content = messages[0].content
    if set(content) - RECORDS or "arrays" not in content.array_records:
        raise ConfigError(f"a message holds {sorted(content)}; the bridge carries arrays and config")
    for message in messages[1:]:
        if message.content is not content and message.content != content:
            raise ConfigError(
                "the strategy sends each site something else, and a sum needs all to have the same"
            )
    return content


def app_config(content: RecordDict) -> dict[str, Any]:
    """What the strategy tells the app; `ConfigError` for lists and bytes, which no terms can spell."""
    values = dict(content.config_records["config"]) if "config" in content.config_records else {}
    for name, value in values.items():
        if not may_be_told(value):
            raise ConfigError("is no single text, finite number or truth value", key=f"config.{name}")
    return values
