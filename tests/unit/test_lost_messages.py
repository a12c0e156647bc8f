"""What is lost between agent and server is sent again, and counted once: E2, E3, E4, E6 without processes."""

import http.server
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import (
    ObjectTree,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
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
from tests.front_world import Authority

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
        assert list(request.clientapp_runtime_list) == [0.0], "how long training took"
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
            wire.answer(asked, reply)
        if restarts:
            wire = stack.enter_context(closing(Wire(address, key, None, registers=False)))
        assert wire.answer(asked, reply) > 0
        assert not uploads.pending and set(uploads.stored.values()) == {1}
        before = uploads.count
        wire.answer(asked, reply)
        assert uploads.count == before, "what is there is not sent again"


def test_E7_an_upload_may_take_longer_than_a_time_out_as_long_as_it_moves(tmp_path: Path) -> None:
    """1.6 MB at 0.8 MB/s, and no write or answer is waited for longer than a second."""
    authority, uploaded = Authority(tmp_path), bytes(1_600_000)
    pair = authority.issue("server")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*pair)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 13
    )  # nothing is on its way that is not read

    def serve() -> None:
        with tls.wrap_socket(listener.accept()[0], server_side=True) as peer:
            got = b""
            while len(got) <= len(uploaded):
                got += peer.recv(1 << 14)
                time.sleep(0.02)
            body = PushObjectResponse(stored=True).SerializeToString()
            peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    address, key = f"localhost:{listener.getsockname()[1]}", loopback_key(tmp_path / "node.key")
    with listener, closing(Wire(address, key, authority.pem, registers=False)) as wire:
        wire._client._client.timeout = httpx.Timeout(1.0)
        request, began = PushObjectRequest(object_id="a" * 64, object_content=uploaded), time.monotonic()
        assert wire._call(wire._client.PushObject, request).stored
        assert time.monotonic() - began > 1.5
        thread.join(10)


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


class Failing(Nodes):
    """Nodes of which an error comes, in place of no answer: what the SuperLink says of them, or they themselves."""

    def __init__(self, answers: dict[int, int], error: Error) -> None:
        super().__init__(answers)
        self.error = error

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        asked = list(messages)
        ids = list(super().push_messages(asked))
        for number, message in zip(ids, asked, strict=True):
            if number not in self.ready:
                self.ready[number] = Message(self.error, reply_to=message)
        return ids


@pytest.mark.parametrize(
    "error",
    [Error(ErrorCode.NODE_UNAVAILABLE, "gone"), Error(1000, "refused:rate")],
    ids=["not connected", "answers no more this hour"],
)
def test_E5_who_may_answer_later_is_waited_for_only_while_too_few_have_answered(
    monkeypatch: pytest.MonkeyPatch, error: Error
) -> None:
    monkeypatch.setattr(exchange_module, "GONE_SECONDS", 0.05)
    for enough, came in ((1, False), (2, True)):
        grid = Failing({2: 1, 3: 3}, error)
        answers = list(exchange(grid, map(to, grid.answers), 60, to, enough))  # type: ignore[arg-type]
        assert [answer.has_error() for answer in answers] == [False, not came]
        assert grid.asked == {2: 1, 3: 3 if came else 1}


def test_E5_a_node_that_has_never_connected_is_waited_for_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower takes no message to it: there is no id."""
    monkeypatch.setattr(exchange_module, "GONE_SECONDS", 0.05)

    class NotYet(Nodes):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            ids = super().push_messages(messages)
            return [number if number in self.ready else "" for number in ids]

    for enough, came in ((1, False), (2, True)):
        grid = NotYet({2: 1, 3: 3})
        answers = list(exchange(grid, map(to, grid.answers), 60, to, enough, enough))  # type: ignore[arg-type]
        assert [answer.has_error() for answer in answers] == [False, not came]
        assert grid.asked == {2: 1, 3: 3 if came else 1}


def test_a_refusal_is_final_and_not_one_of_those_that_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """With too many of them, nobody else is waited for beyond the deadline."""
    grid = Failing({2: 1, 3: 2, 4: 2}, Error(1000, "refused:budget-spent"))
    answers = list(exchange(grid, map(to, grid.answers), 60, to, 3, 3))  # type: ignore[arg-type]
    assert sorted(answer.has_error() for answer in answers) == [False, True, True]
    assert set(grid.asked.values()) == {1}

    class OneIsGone(Failing):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            asked = list(messages)
            ids = list(super().push_messages(asked))
            for number, message in zip(ids, asked, strict=True):
                if message.metadata.dst_node_id == 4:
                    del self.ready[number]
            return ids

    grid, began = OneIsGone({2: 1, 3: 9, 4: 9}, Error(1000, "refused:budget-spent")), time.monotonic()
    assert len(list(exchange(grid, map(to, grid.answers), 0.2, to, 3, 3))) == 2  # type: ignore[arg-type]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_E5_the_deadline_does_not_count_while_too_few_have_answered(needed: int) -> None:
    """Whoever is silent is asked rarer and rarer then."""
    grid, began = Nodes({2: 1, 3: 9}), time.monotonic()
    answers = list(exchange(grid, map(to, grid.answers), 0.2, to, 2, needed))  # type: ignore[arg-type]
    took = time.monotonic() - began
    assert len(answers) == (2 if needed == 2 else 1)
    assert grid.asked[3] == 9 if needed == 2 else grid.asked[3] < 9
    assert took > 0.4 if needed == 2 else took < 0.4


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
