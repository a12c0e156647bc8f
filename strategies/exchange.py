"""Sends messages and waits for the answers, up to a deadline, without Flower's three-second polling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Final

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from tacit.errors import RunFailed

AT_ONCE = 64  # messages that are pushed, or asked for, in one call
POLL_SECONDS, SLOWEST_SECONDS = 0.02, 1.0  # between two questions to the SuperLink: soon at first, then rarer
POLL_SHARE = (
    1 / 8
)  # of the time since the last message was pushed, which is what waiting for an answer adds at most
ASK_SECONDS = 30.0  # a stock Flower node starts a process to answer
ASK_AGAIN_SECONDS = 0.5
LOST_SECONDS = 30.0  # who is silent for this long, while half have answered, may not have got the message
GONE_SECONDS, LONG_GONE_SECONDS = (
    1.0,
    30.0,
)  # between two looks whether a node is back: soon at first, then rarer
GONE: Final = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
NEVER_THERE: Final = Error(ErrorCode.NODE_UNAVAILABLE, "never connected")
LATER: Final = "refused:rate"  # a node that has answered as many rounds within the hour as it may

Again = Callable[[int], Message]


def exchange(
    grid: Grid,
    messages: Iterable[Message],
    deadline_seconds: float,
    again: Again | None = None,
    enough: int = 0,
    needed: int = 0,
) -> Iterator[Message]:
    """The answers that come in time, in the order of arrival, one of each node. Ends early when all have answered.

    A refusal is an answer, but not one of those that are enough or needed.

    Messages and answers are many and may be large, so that only a portion of either is held at a time: make the
    messages as they are asked for, and let go of each answer.

    Args:
        grid: carries them.
        messages: one to each node.
        deadline_seconds: from when the last message is pushed.
        again: makes the message to a node once more. A node that has taken a message and lost the connection before
            it had all of it will not get it again by itself. For messages that are answered from memory the second
            time; None = everything is asked once.
        enough: while fewer have answered, nodes that are not connected, or answer no more rounds within this hour, are
            waited for, if they can be asked again.
        needed: while fewer have answered, and so many still may, the deadline does not count.
    """
    waiting, asked = _Waiting(grid), 0
    left = iter(messages)
    while portion := list(islice(left, AT_ONCE)):
        asked += waiting.push(portion)
        del portion
        yield from waiting.arrived()
    began = last = looked = time.monotonic()
    half = 0.0  # seconds until half had answered
    while waiting.nodes or (again and waiting.gone and waiting.answered < enough):
        yield from waiting.arrived()
        now = time.monotonic()
        elapsed, rest = now - began, began + deadline_seconds - now
        if rest <= 0 and not waiting.may_become(needed):
            break
        if not half and 2 * len(waiting.nodes) <= asked:
            half = max(elapsed, POLL_SECONDS)
        patience = min(deadline_seconds / 4, max(LOST_SECONDS, 2 * half) if half else deadline_seconds)
        patience = max(patience, elapsed / 4)
        if again is not None and now - last >= patience:
            last = now
            waiting.repeat(again, waiting.silent(now - patience))
        look_again = min(max(GONE_SECONDS, elapsed * POLL_SHARE), LONG_GONE_SECONDS)
        if again is not None and now - looked >= look_again and waiting.answered < enough:
            looked = now
            waiting.repeat(again, waiting.gone)
        if waiting.nodes or waiting.gone:
            time.sleep(min(pause(elapsed), rest) if rest > 0 else pause(elapsed))
    yield from waiting.gone.values()


def pause(elapsed: float) -> float:
    """Seconds until the next question. One costs the SuperLink, which is one process, as much as a client's answer."""
    return min(max(POLL_SECONDS, elapsed * POLL_SHARE), SLOWEST_SECONDS)


class _Waiting:
    """Whose answer is waited for.

    Attributes:
        nodes: ids of the messages to each node that has not answered.
        gone: what is said of, or by, each node that may answer later.
        answered: how many have, and not refused.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid, self.nodes, self.gone, self.answered = (
            grid,
            dict[int, set[str]](),
            dict[int, Message](),
            0,
        )
        self._node_of: dict[str, int] = {}

    def push(self, messages: list[Message]) -> int:
        """Sends them; how many were taken."""
        ids, count = list(self._grid.push_messages(messages)), 0
        for message_id, message in zip(ids, messages, strict=False):  # none at all, when they are too large
            node = message.metadata.dst_node_id
            if message_id:
                self.nodes.setdefault(node, set()).add(message_id)
                self._node_of[message_id] = node
                count += 1
            else:  # of a node that has never connected Flower takes none
                self.gone[node] = Message(NEVER_THERE, reply_to=message)
        return count

    def repeat(self, again: Again, nodes: Iterable[int]) -> None:
        """Asks these nodes once more."""
        asked = sorted(nodes)
        for node in asked:
            self.gone.pop(node, None)
        for start in range(0, len(asked), AT_ONCE):
            self.push([again(node) for node in asked[start : start + AT_ONCE]])

    def arrived(self) -> Iterator[Message]:
        """The answers that are there; who has answered is never asked for again."""
        asked = sorted(self._node_of)
        for start in range(0, len(asked), AT_ONCE):
            for answer in self._grid.pull_messages(asked[start : start + AT_ONCE]):
                node = self._node_of.get(answer.metadata.reply_to_message_id)
                if node is not None:
                    for message_id in self.nodes.pop(node):
                        del self._node_of[message_id]
                    if answer.has_error() and (answer.error.code in GONE or answer.error.reason == LATER):
                        self.gone[node] = answer
                    else:
                        self.answered += not answer.has_error()
                        yield answer

    def may_become(self, needed: int) -> bool:
        """Whether fewer than needed have answered, and those that still may would be enough."""
        return self.answered < needed <= self.answered + len(self.nodes) + len(self.gone)

    def silent(self, since: float) -> set[int]:
        """Nodes of which nothing has come since then, neither an answer nor a part of one."""
        progress: Mapping[str, float] = getattr(self._grid, "progress", {})
        return {
            node for node, ids in self.nodes.items() if not any(progress.get(i, 0.0) > since for i in ids)
        }


def find_members(grid: Grid, labels: Iterable[str], deadline_seconds: float) -> dict[str, int]:
    """Node id of each member, asked from the nodes themselves; waits until all are there.

    A node that does not answer, or not with a label, is asked again: it may still be starting.

    Raises:
        RunFailed: some did not come before the deadline.
    """
    wanted, labels_of = list(labels), dict[int, str]()
    deadline = time.monotonic() + deadline_seconds
    while True:
        seconds = min(ASK_SECONDS, deadline - time.monotonic())
        labels_of |= _ask(grid, [node for node in grid.get_node_ids() if node not in labels_of], seconds)
        found = {label: node for node, label in labels_of.items()}
        if missing := [label for label in wanted if label not in found]:
            if time.monotonic() >= deadline:
                raise RunFailed(f"sites that never came: {', '.join(missing)}")
            time.sleep(ASK_AGAIN_SECONDS)
        else:
            return {label: found[label] for label in wanted}


def _ask(grid: Grid, nodes: list[int], seconds: float) -> Mapping[int, str]:
    """The label of each node that gives one in time."""

    def question(node: int) -> Message:
        return Message(content=RecordDict(), message_type="query.tacit", dst_node_id=node)

    labels: dict[int, str] = {}
    for answer in exchange(grid, map(question, nodes), seconds, question):
        record = answer.content.get("tacit") if answer.has_content() else None
        if isinstance(record, ConfigRecord) and isinstance(label := record.get("label"), str):
            labels[answer.metadata.src_node_id] = label
    return labels
