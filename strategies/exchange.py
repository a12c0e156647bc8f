"""Sends messages and waits for the answers, up to a deadline, without Flower's three-second polling."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from tacit.errors import RunFailed

AT_ONCE = 64  # messages that are pushed, or asked for, in one call
POLL_SECONDS = 0.02
ASK_SECONDS = 30.0  # a stock Flower node starts a process to answer
ASK_AGAIN_SECONDS = 0.5


def exchange(grid: Grid, messages: Iterable[Message], deadline_seconds: float) -> Iterator[Message]:
    """The answers that come in time, in the order of arrival. Ends early when everybody has answered.

    Messages and answers are many and may be large, so that only a portion of either is held at a time: make the
    messages as they are asked for, and let go of each answer.
    """
    pending: set[str] = set()
    waiting = iter(messages)
    while portion := list(islice(waiting, AT_ONCE)):
        pending.update(message_id for message_id in grid.push_messages(portion) if message_id)
        del portion
        yield from _arrived(grid, pending)
    deadline = time.monotonic() + deadline_seconds
    while pending:
        yield from _arrived(grid, pending)
        if not pending or time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)


def _arrived(grid: Grid, pending: set[str]) -> Iterator[Message]:
    """The answers that are there; their ids leave `pending` and are never asked for again."""
    asked = sorted(pending)
    for start in range(0, len(asked), AT_ONCE):
        for answer in grid.pull_messages(asked[start : start + AT_ONCE]):
            pending.discard(answer.metadata.reply_to_message_id)
            yield answer


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
    questions = [
        Message(content=RecordDict(), message_type="query.tacit", dst_node_id=node) for node in nodes
    ]
    labels: dict[int, str] = {}
    for answer in exchange(grid, questions, seconds):
        record = answer.content.get("tacit") if answer.has_content() else None
        if isinstance(record, ConfigRecord) and isinstance(label := record.get("label"), str):
            labels[answer.metadata.src_node_id] = label
    return labels
