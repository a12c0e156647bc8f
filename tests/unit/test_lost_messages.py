"""What is lost between agent and server is sent again, and counted once: E2, E3, E4, E6 without processes."""

import http.server
import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse, PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.task_identity import TaskIdentity

from client.flower_wire import Delivery, Lost, Wire, loopback_key
from server.flower_wire import SteadyGrid
from strategies import exchange as exchange_module
from strategies.exchange import exchange

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0


def delivery() -> Delivery:
    asked = Message(RecordDict(), 7, "train.tacit2")
    asked.metadata.__dict__["_message_id"] = "a" * 64
    return Delivery(asked, ObjectTree(object_id="a" * 64))


@contextmanager
def served(answer: Any) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            answer(self, self.rfile.read(int(self.headers["content-length"])))

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{made.server_port}"
        made.shutdown()


class Uploads:
    """A SuperLink's side of uploads: an answer that the server has heard of is not taken a second time.

    Args:
        loses: numbers of the requests whose answer is lost.
    """

    def __init__(self, *loses: int) -> None:
        self.loses, self.count, self._one_at_a_time = loses, 0, threading.Lock()
        self.pending, self.stored, self.announced = set[str](), dict[str, int](), set[str]()

    def __call__(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        with self._one_at_a_time:
            answer = self._announce(body) if handler.path.endswith("/push-messages") else self._store(body)
            self.count += 1
            is_lost = self.count in self.loses
        handler.close_connection = True
        if is_lost:
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(answer)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(answer)

    def _announce(self, body: bytes) -> bytes:
        request = PushMessagesRequest.FromString(body)
        number = request.messages_list[0].metadata.message_id
        if number in self.announced:
            return bytes(PushMessagesResponse(session_id="2").SerializeToString())
        self.announced.add(number)
        self.pending = {tree.object_id for tree in iterate_object_tree(request.message_object_trees[0])}
        told = PushMessagesResponse(objects_to_push=sorted(self.pending), session_id="1")
        return bytes(told.SerializeToString())

    def _store(self, body: bytes) -> bytes:
        request = PushObjectRequest.FromString(body)
        is_taken = request.object_id in self.pending and request.session_id in ("1", "")
        if is_taken:
            self.pending.remove(request.object_id)
            self.stored[request.object_id] = self.stored.get(request.object_id, 0) + 1
        return bytes(PushObjectResponse(stored=is_taken).SerializeToString())


@pytest.mark.parametrize("restarts", [False, True], ids=["goes on", "restarted"])
@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_E3_a_half_sent_answer_is_completed_though_the_server_has_heard_of_it(
    lost: int, restarts: bool, tmp_path: Path
) -> None:
    uploads, asked = Uploads(lost), delivery()
    reply = Message(RecordDict({"r": ConfigRecord({"x": 1})}), reply_to=asked.message)
    key = loopback_key(tmp_path / "node.key")
    with served(uploads) as address, ExitStack() as stack:
        wire = stack.enter_context(closing(Wire(address, key, None, registers=False)))
        with pytest.raises(Lost):
            wire.answer(asked, reply, 0.1)
        if restarts:
            wire = stack.enter_context(closing(Wire(address, key, None, registers=False)))
        assert wire.answer(asked, reply, 0.1) > 0
        assert not uploads.pending and set(uploads.stored.values()) == {1}
        before = uploads.count
        wire.answer(asked, reply, 0.1)
        assert uploads.count == before, "what is there is not sent again"


class Nodes:
    """A grid whose nodes answer the n-th message to them, or never (0); counts what they are asked."""

    def __init__(self, answers: dict[int, int]) -> None:
        self.answers, self.asked = answers, dict.fromkeys(answers, 0)
        self.ready: dict[str, Message] = {}
        self.progress: dict[str, float] = {}
        self.pulled: list[str] = []
        self._numbers = itertools.count(1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.asked[node] += 1
            message.metadata.__dict__["_message_id"] = number = f"m{next(self._numbers)}"
            if self.asked[node] >= self.answers[node] > 0:
                self.ready[number] = Message(RecordDict(), reply_to=message)
            ids.append(number)
        return ids

    def pull_messages(self, ids: Iterable[str]) -> Iterable[Message]:
        self.pulled += ids
        return [self.ready.pop(number) for number in list(ids) if number in self.ready]


def to(node: int) -> Message:
    return Message(RecordDict(), node, "train.tacit1")


def nodes_that_answer(grid: Nodes, seconds: float, *, again: bool = True) -> list[int]:
    answers = exchange(grid, map(to, grid.answers), seconds, to if again else None)  # type: ignore[arg-type]
    return sorted(answer.metadata.src_node_id for answer in answers)


def test_E3_who_has_not_got_a_message_is_asked_again_within_the_phase() -> None:
    grid = Nodes({2: 1, 3: 2, 4: 3, 5: 0})
    assert nodes_that_answer(grid, 0.6) == [2, 3, 4]
    assert grid.asked[2] == 1 and grid.asked[3] >= 2 and 3 <= grid.asked[5] <= 5


def test_who_must_be_asked_once_is_asked_once() -> None:
    grid = Nodes({2: 1, 3: 2})
    assert nodes_that_answer(grid, 0.3, again=False) == [2]
    assert set(grid.asked.values()) == {1}


def test_E3_two_answers_of_a_node_count_once_and_it_is_never_asked_for_again() -> None:
    grid = Nodes({2: 1, 3: 0})
    late = exchange(grid, map(to, grid.answers), 0.6, to)  # type: ignore[arg-type]
    for answer in late:
        number = answer.metadata.reply_to_message_id
        grid.ready[number] = answer  # the same once more
    assert grid.asked[2] == 1
    assert grid.pulled.count(number) == 1


def test_E7_whose_answer_is_coming_in_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Nodes({2: 1, 3: 0})
    monkeypatch.setattr(
        type(grid),
        "progress",
        property(lambda self: {"m2": time.monotonic()}, lambda self, value: None),
        raising=False,
    )
    assert nodes_that_answer(grid, 0.6) == [2]
    assert grid.asked[3] == 1


def test_while_half_have_answered_the_others_have_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "LOST_SECONDS", 0.05)
    grid = Nodes({2: 1, 3: 2})
    began = time.monotonic()
    assert nodes_that_answer(grid, 60) == [2, 3]
    assert 0.05 <= time.monotonic() - began < 10


def test_E5_who_is_not_connected_is_waited_for_only_while_too_few_have_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Gone(Nodes):
        """Node 3 is there from the third question on; till then the SuperLink answers for it."""

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            asked = list(messages)
            ids = list(super().push_messages(asked))
            for number, message in zip(ids, asked, strict=True):
                if number not in self.ready:
                    error = Error(ErrorCode.NODE_UNAVAILABLE, "gone")
                    self.ready[number] = Message(error, reply_to=message)
            return ids

    monkeypatch.setattr(exchange_module, "GONE_SECONDS", 0.05)
    for enough, came in ((1, False), (2, True)):
        grid = Gone({2: 1, 3: 3})
        answers = list(exchange(grid, map(to, grid.answers), 60, to, enough))  # type: ignore[arg-type]
        assert [answer.has_error() for answer in answers] == [False, not came]
        assert grid.asked == {2: 1, 3: 3 if came else 1}


class Told:
    """A SuperLink's side of answers: told of once, uploaded later; stands for Flower's grid and its client."""

    def __init__(self, answers: list[Message]) -> None:
        self.node, self.run, self._runtime_client = Node(node_id=1), SimpleNamespace(run_id=1), self
        self.answers = {answer.metadata.reply_to_message_id: answer for answer in answers}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.confirmed: list[str] = []
        self.lost = False

    def upload(self, answer: Message, count: int = 100) -> None:
        """The first objects of an answer, in the order that they are asked for."""
        objects = get_all_nested_objects(answer)
        for tree in list(iterate_object_tree(get_object_tree(answer)))[:count]:
            self.objects[tree.object_id] = objects[tree.object_id].deflate()

    def PullMessages(self, request: Any) -> Any:
        self.asked += request.message_ids
        told = [self.answers.pop(number) for number in request.message_ids if number in self.answers]
        return SimpleNamespace(
            messages_list=[message_to_proto(answer) for answer in told],
            message_object_trees=[get_object_tree(answer) for answer in told],
        )

    def PullObject(self, request: Any) -> PullObjectResponse:
        content = self.objects.get(request.object_id)
        return PullObjectResponse(
            object_found=not self.lost, object_available=content is not None, object_content=content or b""
        )

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.confirmed.append(request.message_object_id)


def answer_to(number: str) -> Message:
    asked = Message(RecordDict(), 7, "train.tacit2")
    asked.metadata.__dict__["_message_id"] = number * 64
    answer = Message(RecordDict({"tacit": ConfigRecord({"body": number.encode()})}), reply_to=asked)
    answer.metadata.__dict__["_message_id"] = answer.object_id
    return answer


def test_E4_half_an_answer_holds_up_nobody_and_is_taken_when_it_is_whole() -> None:
    half, whole = answer_to("a"), answer_to("b")
    link = Told([half, whole])
    link.upload(half, 1)
    link.upload(whole)
    grid, ids = SteadyGrid(link), ["a" * 64, "b" * 64]  # type: ignore[arg-type]
    began = time.monotonic()
    (first,) = grid.pull_messages(ids)
    assert time.monotonic() - began < 5
    assert first.metadata.reply_to_message_id == "b" * 64
    assert first.content["tacit"]["body"] == b"b"  # type: ignore[index, call-overload]
    assert list(grid.progress) == ["a" * 64]
    assert list(grid.pull_messages(["a" * 64])) == []
    link.upload(half)
    (second,) = grid.pull_messages(["a" * 64])
    assert second.content["tacit"]["body"] == b"a"  # type: ignore[index, call-overload]
    assert link.asked == ids, "the SuperLink tells of an answer once"
    assert link.confirmed == [whole.object_id, half.object_id]
    assert not grid.progress


def test_E4_an_upload_that_is_given_up_is_asked_for_anew() -> None:
    link = Told([answer_to("a")])
    grid = SteadyGrid(link)  # type: ignore[arg-type]
    assert list(grid.pull_messages(["a" * 64])) == []
    link.lost = True
    assert list(grid.pull_messages(["a" * 64])) == []
    assert not grid.progress
    list(grid.pull_messages(["a" * 64]))
    assert link.asked == ["a" * 64] * 2
