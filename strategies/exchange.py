"""Sends messages and waits for the answers, up to a deadline, without Flower's three-second polling."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from tacit.errors import RunFailed

POLL_SECONDS = 0.02


def exchange(grid: Grid, messages: Iterable[Message], deadline_seconds: float) -> list[Message]:
    """The answers that came in time, in the order of arrival. Ends early when everybody has answered."""
    pending = {message_id for message_id in grid.push_messages(messages) if message_id}
    deadline = time.monotonic() + deadline_seconds
    answers: list[Message] = []
    while pending:
        for answer in grid.pull_messages(sorted(pending)):
            pending.discard(answer.metadata.reply_to_message_id)  # never asked for again
            answers.append(answer)
        if not pending or time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    return answers


def find_members(grid: Grid, labels: Iterable[str], deadline_seconds: float) -> dict[str, int]:
    """Node id of each member, asked from the nodes themselves; waits until all are there.

    Raises:
        RunFailed: some did not come before the deadline.
    """
    wanted, found, asked = list(labels), dict[str, int](), set[int]()
    deadline = time.monotonic() + deadline_seconds
    while len(found) < len(wanted):
        new = [node for node in grid.get_node_ids() if node not in asked]
        asked.update(new)
        for label, node in _ask(grid, new, deadline_seconds).items():
            if label in wanted:
                found[label] = node
        if len(found) < len(wanted) and time.monotonic() >= deadline:
            missing = ", ".join(sorted(set(wanted) - set(found)))
            raise RunFailed(f"sites that never came: {missing}")
        if not new and len(found) < len(wanted):
            time.sleep(0.5)
    return {label: found[label] for label in wanted}


def _ask(grid: Grid, nodes: list[int], deadline_seconds: float) -> Mapping[str, int]:
    questions = [
        Message(content=RecordDict(), message_type="query.tacit", dst_node_id=node) for node in nodes
    ]
    labels: dict[str, int] = {}
    for answer in exchange(grid, questions, deadline_seconds):
        if answer.has_content():
            record = answer.content.get("tacit")
            if isinstance(record, ConfigRecord) and isinstance(label := record.get("label"), str):
                labels[label] = answer.metadata.src_node_id
    return labels
