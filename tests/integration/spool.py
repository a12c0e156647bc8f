"""A SuperLink as a folder: what is sent lies in a file, whoever dies; what was sent stays there as evidence.

    RUN/NODE/ID.asked         not taken yet
    RUN/NODE/taken/ID.asked   taken: a message is handed out once
    RUN/ID.answer             what a node has sent

Each start of the server is a run of its own, as it is for Flower: answers to an earlier one come too late.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree

from client.flower_wire import Delivery, Over, RunInfo
from simulations.local_grid import SERVER_NODE, LocalGrid, identify_process

FIRST_NODE = SERVER_NODE + 1
TAKEN = "taken"  # in a folder of its own: looking for what is new costs the same after hours


class SpoolGrid(LocalGrid):
    """The server's end."""

    def __init__(self, folder: Path, num_nodes: int) -> None:
        super().__init__(ClientApp(), {}, num_nodes, durable=True)
        self._folder = folder / f"{len(list(folder.iterdir())):05d}"
        for node in self.get_node_ids():
            (self._folder / str(node) / TAKEN).mkdir(parents=True)
        self._ids = itertools.count(1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = []
        for message in messages:
            name = f"{self._folder.name}-{next(self._ids):06d}"
            message.metadata.__dict__.update(_message_id=name, _run_id=int(self._folder.name))
            put(self._folder / str(message.metadata.dst_node_id) / f"{name}.asked", message)
            pushed.append(name)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        there = [self._folder / f"{name}.answer" for name in message_ids]
        return [get(path) for path in there if path.exists()]


class SpoolWire:
    """A node's end, in place of `client.flower_wire.Wire`."""

    def __init__(self, folder: Path, node: int, experiment: str) -> None:
        self._folder, self.node_id, self._experiment = folder, node, experiment
        identify_process()

    def join(self, known: int) -> int:
        return self.node_id

    def leave(self) -> None:
        pass

    def heartbeat(self) -> None:
        pass

    def receive(self) -> Delivery | None:
        runs = sorted(self._folder.iterdir())
        for path in sorted((runs[-1] / str(self.node_id)).glob("*.asked")) if runs else ():
            taken = path.rename(path.parent / TAKEN / path.name)
            return Delivery(bare(get(taken)), ObjectTree(object_id="all"))
        return None

    def run(self, run_id: int) -> RunInfo:
        return RunInfo("00" * 32, {"experiment": self._experiment}, 0)

    def fetch(self, delivery: Delivery) -> Message:
        asked = delivery.message.metadata
        node = self._folder / f"{asked.run_id:05d}" / str(self.node_id)
        return get(node / TAKEN / f"{asked.message_id}.asked")

    def answer(self, delivery: Delivery, reply: Message) -> int:
        asked = delivery.message.metadata
        run = self._folder / f"{asked.run_id:05d}"
        put(run / f"{asked.message_id}.answer", reply)
        if run != max(self._folder.iterdir()):
            raise Over("the run has ended")
        return 1

    def done(self, delivery: Delivery) -> None:
        pass


@dataclass(frozen=True)
class Exchange:
    """A request and what was sent in answer to it, in the file `path`."""

    path: Path
    node: int
    asked: Message
    answer: Message


def exchanges(folder: Path) -> Iterator[Exchange]:
    """Everything that was ever answered, in the order in which it was asked for."""
    for asked in sorted(folder.glob(f"*/*/{TAKEN}/*.asked"), key=lambda path: path.name):
        answer = asked.parents[2] / f"{asked.stem}.answer"
        if answer.exists():
            yield Exchange(answer, int(asked.parents[1].name), get(asked), get(answer))


def put(path: Path, message: Message) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_bytes(message_to_proto(message).SerializeToString())
    unfinished.rename(path)


def get(path: Path) -> Message:
    return message_from_proto(ProtoMessage.FromString(path.read_bytes()))


def bare(message: Message) -> Message:
    return remove_content_from_message(message) if message.has_content() else message
