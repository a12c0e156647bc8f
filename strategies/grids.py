"""Grids that wrap another grid: a view of one cohort, and the plain exchange without a secure sum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, Message, RecordDict
from flwr.serverapp import Grid

from strategies.exchange import exchange
from tacit.errors import RunFailed
from tacit.logs import visible


@dataclass(frozen=True)
class RoundFacts:
    """What the server may know of one round's exchange.

    Attributes:
        survivors: labels of the sites whose updates are in the aggregate.
        refusals: how many sites refused, by reason code; of several attempts the most.
        bytes_up: bytes of the largest update sent by one client.
        bits: width of a word of the masked vector; None without a secure sum.
        threshold: T of the cohort; None without a secure sum.
        num_clipped: updates longer than the clip norm; known to the ideal sum of a simulation only.
        noise_share: scale of the noise in each vector of the sum, in integer units.
        below_clip: share of updates not longer than the clip norm, with noise; None where no bit says so.
        attempts: how many it took, since the server was last started; None without the protocol.
        blamed: labels of the sites that dealt or opened shares falsely.
        phases: seconds of each phase of the attempt that gave the sum; empty without the protocol.
    """

    survivors: tuple[str, ...] = ()
    refusals: Mapping[str, int] = field(default_factory=dict)
    bytes_up: int = 0
    bits: int | None = None
    threshold: int | None = None
    num_clipped: int | None = None
    noise_share: float = 0.0
    below_clip: float | None = None
    attempts: int | None = None
    blamed: tuple[str, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)


class WrappedGrid(Grid):
    """Passes everything on to another grid. (A run is of a private class of Flower's, hence `Any`.)"""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Any) -> None:
        """See Flower's `Grid`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """See Flower's `Grid`."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See Flower's `Grid`."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See Flower's `Grid`."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See Flower's `Grid`."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See Flower's `Grid`."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See Flower's `Grid`."""
        return self._grid.send_and_receive(messages, timeout=timeout)


class CohortGrid(WrappedGrid):
    """Shows a strategy the nodes of one cohort only, so that it samples exactly these."""

    def __init__(self, grid: Grid, nodes: Iterable[int]) -> None:
        super().__init__(grid)
        self._nodes = tuple(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """The cohort's nodes."""
        return self._nodes


class PlainGrid(WrappedGrid):
    """Single updates, visible to the server: without a secure sum.

    Args:
        grid: carries the messages.
        labels: label of each node, in roster order.
        deadline_seconds: how long a round waits.
        fewest: updates that a round needs: what a strategy promises against harmful ones follows from their number.
    """

    def __init__(
        self, grid: Grid, labels: Mapping[int, str], deadline_seconds: float, fewest: int = 0
    ) -> None:
        super().__init__(grid)
        self._labels, self._deadline, self._fewest = labels, deadline_seconds, fewest
        self.facts = RoundFacts()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """The updates that came in time, in roster order. Refusals and what is no update are counted.

        Raises:
            RunFailed: too few have come for what the strategy promises.
        """
        messages = list(messages)
        answers = list(exchange(self._grid, messages, timeout or self._deadline))
        refusals = count_refusals(answers)
        sent = [answer for answer in answers if not answer.has_error()]
        good = alike([answer for answer in sent if is_update(answer.content, messages[0].content)])
        if len(good) < len(sent):
            refusals["malformed"] = len(sent) - len(good)
        order = {node: i for i, node in enumerate(self._labels)}
        good.sort(key=lambda answer: order[answer.metadata.src_node_id])
        self.facts = RoundFacts(
            survivors=tuple(self._labels[answer.metadata.src_node_id] for answer in good),
            refusals=refusals,
            bytes_up=max((size_of(answer.content) for answer in good), default=0),
        )
        if good and len(good) < self._fewest:
            raise RunFailed(
                f"{len(good)} of {len(messages)} updates arrived, the strategy needs {self._fewest}; "
                f"sites refused: {spelled(refusals)}"
            )
        return good


def is_update(content: RecordDict, request: RecordDict) -> bool:
    """Whether an answer has the request's arrays, finite, and a weight above 0 among finite metrics."""
    arrays, metrics = content.array_records, content.metric_records
    if set(arrays) != {"arrays"} or set(metrics) != {"metrics"}:
        return False
    model, asked = arrays["arrays"], request.array_records["arrays"]
    if set(model) != set(asked) or not all(_same_form(model[name], asked[name]) for name in asked):
        return False
    try:
        values = [*(array.numpy() for array in model.values()), np.array(list(metrics["metrics"].values()))]
        weight = float(str(metrics["metrics"]["num-examples"]))
    except (ValueError, TypeError, KeyError):
        return False
    return weight > 0 and all(bool(np.isfinite(value).all()) for value in values)


def _same_form(array: Array, asked: Array) -> bool:
    """Same dtype and shape by the bytes of the header, before numpy reserves what a header asks for."""
    header = asked.data[: len(asked.data) - np.dtype(asked.dtype).itemsize * math.prod(asked.shape)]
    return len(array.data) == len(asked.data) and array.data.startswith(header)


def alike(answers: list[Message]) -> list[Message]:
    """Those with the names of metrics that most have; Flower's strategies stop at a mixture."""
    names = [frozenset(answer.content.metric_records["metrics"]) for answer in answers]
    usual = Counter(names).most_common(1)[0][0] if names else frozenset()
    return [answer for answer, own in zip(answers, names, strict=True) if own == usual]


def count_refusals(answers: Iterable[Message]) -> dict[str, int]:
    """How often each reason was given: the first line of it, in characters that a terminal does not obey."""
    reasons = (answer.error.reason or "" for answer in answers if answer.has_error())
    return dict(Counter(visible(reason.removeprefix("refused:").split("\n")[0][:200]) for reason in reasons))


def spelled(refusals: Mapping[str, int]) -> str:
    """Refusals in words, for an error message."""
    return ", ".join(f"{reason} ({count})" for reason, count in sorted(refusals.items())) or "none"


def size_of(content: RecordDict) -> int:
    """Bytes of the arrays of a message."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())
