"""A SuperLink in memory, and both its ends, for histories: what is sent waits, arrives, is lost or comes again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree

from client.flower_wire import Delivery, Lost, Over, RunInfo
from simulations.local_grid import LocalGrid

NUM_SITES = 4


class Idle(Exception):
    """There is nothing to be taken."""


class Link:
    """What a SuperLink remembers: messages that nobody has taken, and answers that nobody has pulled."""

    def __init__(self) -> None:
        self.forget()
        self.run = 0
        self.sent: dict[int, list[Message]] = defaultdict(list)  # to each node, ever
        self.answered: list[Message] = []  # what sites have sent, ever
        self.look: Callable[[Message], None] = lambda answer: None  # at whatever leaves a site
        self.cut: set[int] = set()
        self.reverses = False

    def forget(self) -> None:
        self.waiting: dict[int, list[Message]] = defaultdict(list)
        self.answers: dict[str, Message] = {}


class HeldGrid(LocalGrid):
    """The server's end of a link."""

    def __init__(self, link: Link) -> None:
        super().__init__(ClientApp(), {}, NUM_SITES, durable=True)
        self._link = link
        link.run += 1
        link.forget()  # answers to an earlier run come too late

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = []
        for message in messages:
            name, node = f"{self._link.run:03d}-{next(self._numbers):05d}", message.metadata.dst_node_id
            message.metadata.__dict__.update(_message_id=name, _run_id=self._link.run)
            self._link.sent[node].append(message)
            if node in self._link.cut:
                gone = Error(ErrorCode.NODE_UNAVAILABLE, "gone")
                self._link.answers[name] = Message(gone, reply_to=message)
            else:
                self._link.waiting[node].append(message)
            pushed.append(name)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = [name for name in message_ids if name in self._link.answers]
        return [self._link.answers.pop(name) for name in (reversed(ids) if self._link.reverses else ids)]


class HeldWire:
    """A node's end of a link, in place of `client.flower_wire.Wire`.

    Attributes:
        fate: of the next answer: "arrives", "lost", or "not acknowledged".
    """

    def __init__(self, link: Link, node: int, experiment: str) -> None:
        self._link, self.node_id, self._experiment, self.fate = link, node, experiment, "arrives"

    def receive(self) -> Delivery | None:
        waiting = self._link.waiting[self.node_id]
        if not waiting or self.node_id in self._link.cut:
            raise Idle
        message = waiting.pop(0)
        bare = remove_content_from_message(message) if message.has_content() else message
        return Delivery(bare, ObjectTree(object_id="all"))

    def run(self, run_id: int) -> RunInfo:
        return RunInfo("00" * 32, {"experiment": self._experiment}, 0)

    def fetch(self, delivery: Delivery) -> Message:
        number = delivery.message.metadata.message_id
        found = [m for m in self._link.sent[self.node_id] if m.metadata.message_id == number]
        if not found:
            raise Over("gone")
        return found[0]

    def answer(self, delivery: Delivery, reply: Message) -> int:
        fate, self.fate = self.fate, "arrives"
        asked = delivery.message.metadata
        self._link.look(reply)  # it leaves the site, wherever it ends
        self._link.answered.append(reply)
        if fate == "lost" or self.node_id in self._link.cut:
            raise Lost("on its way")
        if asked.run_id != self._link.run:
            raise Over("the run has ended")
        self._link.answers.setdefault(asked.message_id, reply)
        if fate == "not acknowledged":
            raise Lost("on its way back")
        return 1

    def done(self, delivery: Delivery) -> None:
        pass
